//! The content hash and the chain, against the vectors that the ledger's side is tested with too.

use std::collections::HashSet;

use quota_proto::{
    bridge::{LoggedAttribute, LoggedQuantity, LoggedUsage},
    content::content_hash,
    ledger::RecordFlag,
};
use serde_json::Value;
use usage_log::{Hash, chain_next, chain_start, hole_hash};

fn vectors() -> Value {
    serde_json::from_str(include_str!(
        "../../../../../proto/vectors/content_hash.json"
    ))
    .unwrap()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    let text = value.as_str().unwrap();
    let digits: Vec<u8> = text
        .bytes()
        .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
        .collect();
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    bytes.try_into().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn record(case: &Value) -> LoggedUsage {
    let quantity = |q: &Value| LoggedQuantity {
        meter: text(&q["meter"]),
        units: q["units"].as_i64().unwrap(),
    };
    let attribute = |a: &Value| LoggedAttribute {
        name: text(&a["name"]),
        value: text(&a["value"]),
    };
    let mut quantities: Vec<_> = list(&case["quantities"]).iter().map(quantity).collect();
    let mut attributes: Vec<_> = list(&case["attributes"]).iter().map(attribute).collect();
    // The log holds both in their names' byte order, which is how Rust compares strings.
    quantities.sort_by(|a, b| a.meter.cmp(&b.meter));
    attributes.sort_by(|a, b| a.name.cmp(&b.name));
    LoggedUsage {
        tenant: text(&case["tenant"]),
        event_time_us: case["event_time_us"].as_i64().unwrap(),
        quantities,
        attributes,
        flags: if case["system_id"].as_bool().unwrap() {
            RecordFlag::SystemId as u32
        } else {
            0
        },
        ..LoggedUsage::default()
    }
}

/// Every content case gives the hash of the vectors, and cases meant to differ do.
#[test]
fn content_hashes() {
    let vectors = vectors();
    let cases = list(&vectors["content"]);
    for case in cases {
        assert_eq!(
            bytes::<32>(&case["hash"]),
            content_hash(&record(case)),
            "{}",
            case["name"]
        );
    }
    let distinct: HashSet<_> = cases.iter().map(|case| text(&case["hash"])).collect();
    assert_eq!((19, 17), (cases.len(), distinct.len()));
}

/// Holes and chains are those of the vectors, step by step.
#[test]
fn chains() {
    let vectors = vectors();
    for hole in list(&vectors["holes"]) {
        let (first_seq, last_seq) = (
            hole["first_seq"].as_u64().unwrap(),
            hole["last_seq"].as_u64().unwrap(),
        );
        assert_eq!(bytes::<32>(&hole["hash"]), hole_hash(first_seq, last_seq));
    }
    for chain in list(&vectors["chains"]) {
        let mut h = chain_start(&bytes(&chain["producer_id"]));
        let mut steps: Vec<Hash> = vec![h];
        for content in list(&chain["content_hashes"]) {
            h = chain_next(&h, &bytes(content));
            steps.push(h);
        }
        let expected: Vec<Hash> = list(&chain["h"]).iter().map(bytes).collect();
        assert_eq!(expected, steps, "{}", chain["name"]);
    }
}
