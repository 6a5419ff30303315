//! What a trace says of the ledger: each transaction with its answer and the rows after it. The format is in README.md.

use std::fmt::{Display, Write};

use quota_core::{AllotAnswer, AllotAsk, Holder, LimitKind, WindowId};

use super::ledger::{Ledger, Line, Plan, Window};

/// Bytes as hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Texts as a JSON list; none of them needs escapes.
pub(super) fn list<T: Display>(texts: &[T]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
    format!("[{}]", quoted.join(","))
}

fn ask_state(ask: &AllotAsk) -> String {
    format!(
        "{{\"tenant\":\"{}\",\"limit\":\"{}\",\"key_hash\":\"{}\",\"at_us\":{},\"request_seq\":{},\"need\":{},\"want\":{},\"generation_seen\":{},\"allotted_cum_seen\":{},\"fault\":{},\"ledger_only\":{}}}",
        ask.tenant,
        ask.limit,
        hex(&ask.key_hash.0),
        ask.at_us,
        ask.request_seq,
        ask.need,
        ask.want,
        ask.generation_seen,
        ask.allotted_cum_seen,
        ask.fault
            .map_or("null".to_owned(), |fault| format!("\"{fault:?}\"")),
        ask.ledger_only
    )
}

fn answer_state(answer: &AllotAnswer, opened: Option<bool>) -> String {
    match answer {
        AllotAnswer::Lease {
            give, granted_cum, ..
        } => {
            format!("{{\"is\":\"lease\",\"give\":{give},\"granted_cum\":{granted_cum}}}")
        }
        AllotAnswer::Pool {
            generation,
            allotted_cum,
            last,
            ..
        } => format!(
            "{{\"is\":\"pool\",\"generation\":{generation},\"allotted_cum\":{allotted_cum},\"final\":{last}}}"
        ),
        AllotAnswer::Denied { left, .. } => format!("{{\"is\":\"denied\",\"left\":{left}}}"),
        AllotAnswer::Bucket { generation, .. } => {
            let first = opened.map_or("null".to_owned(), |is_first| is_first.to_string());
            format!("{{\"is\":\"bucket\",\"generation\":{generation},\"first\":{first}}}")
        }
        AllotAnswer::Refused {
            reason,
            last_request_seq,
        } => format!(
            "{{\"is\":\"refused\",\"reason\":\"{reason}\",\"last_request_seq\":{last_request_seq}}}"
        ),
    }
}

/// One window's rows.
fn rows(window: &Window) -> String {
    let generations: Vec<String> = window
        .generations
        .iter()
        .map(|one| {
            format!(
                "{{\"generation\":{},\"allotted_cum\":{},\"credited\":{},\"lost\":{},\"closing\":{},\"closed\":{}}}",
                one.number, one.allotted_cum, one.credited, one.is_lost, one.is_closing, one.is_closed
            )
        })
        .collect();
    let leases: Vec<String> = window
        .leases
        .iter()
        .map(|(holder, lease)| {
            format!(
                "\"{}\":[{},{},{}]",
                hex(&holder.0),
                lease.request_seq,
                lease.granted_cum,
                lease.returned_cum
            )
        })
        .collect();
    let returns: Vec<String> = window
        .lost_returns
        .iter()
        .filter(|(_, returned)| **returned > 0)
        .map(|((holder, generation), returned)| {
            format!("[\"{}\",{generation},{returned}]", hex(&holder.0))
        })
        .collect();
    let consumed: Vec<String> = window
        .consumed
        .iter()
        .map(|(holder, (consumed, over))| format!("\"{}\":[{consumed},{over}]", hex(&holder.0)))
        .collect();
    format!(
        "{{\"window\":\"{}\",\"tenant\":\"{}\",\"limit\":\"{}\",\"key_hash\":\"{}\",\"start_us\":{},\"end_us\":{},\"pool_key\":\"{}\",\"amount\":{},\"amount_version\":{},\"allotted\":{},\"ceiling\":{},\"wanted\":{},\"generations\":[{}],\"leases\":{{{}}},\"lost_returns\":[{}],\"consumed\":{{{}}}}}",
        hex(&window.id.0),
        window.identity.0,
        window.identity.1,
        hex(&window.identity.2.0),
        window.start_us,
        window.end_us,
        window.pool_key(),
        window.amount,
        window.amount_version,
        window.allotted,
        window.ceiling,
        window.wanted,
        generations.join(","),
        leases.join(","),
        returns.join(","),
        consumed.join(",")
    )
}

impl Ledger {
    fn write(line: &mut Line<'_>, text: String) {
        if let Some(trace) = &mut line.redis.trace {
            trace.push(text);
        }
    }

    /// Writes that a limit has this amount from now on.
    pub(super) fn trace_limit(&self, tenant: &str, limit: &str, trace: &mut Vec<String>) {
        let Some((
            rule,
            Plan {
                length_us,
                is_rolling,
            },
        )) = self.limits.get(&(tenant.into(), limit.into()))
        else {
            return;
        };
        trace.push(format!(
            "{{\"kind\":\"limit\",\"tenant\":\"{tenant}\",\"limit\":\"{limit}\",\"is\":\"{}\",\"amount\":{},\"amount_version\":{},\"length_us\":{length_us},\"rolling\":{is_rolling}}}",
            if matches!(rule.kind, LimitKind::TokenBucket { .. }) {
                "bucket"
            } else {
                "window"
            },
            rule.amount.unwrap_or(0),
            rule.amount_version
        ));
    }

    /// Writes one ask with its answer and the window's rows after it.
    pub(super) fn trace_allot(
        &mut self,
        holder: Holder,
        ask: &AllotAsk,
        answer: &AllotAnswer,
        line: &mut Line<'_>,
        ledger_us: i64,
    ) {
        let opened = self.opened.take();
        if line.redis.trace.is_none() {
            return;
        }
        let window = match answer {
            AllotAnswer::Lease { window, .. }
            | AllotAnswer::Pool { window, .. }
            | AllotAnswer::Denied { window, .. } => {
                self.window(window.id).map_or("null".to_owned(), rows)
            }
            _ => "null".to_owned(),
        };
        let text = format!(
            "{{\"kind\":\"allot\",\"ledger_us\":{ledger_us},\"holder\":\"{}\",\"ask\":{},\"answer\":{},\"rows\":{window}}}",
            hex(&holder.0),
            ask_state(ask),
            answer_state(answer, opened)
        );
        Self::write(line, text);
    }

    /// Writes what a holder told of a window (`return` or `report`) with the answer and the rows after it.
    pub(super) fn trace_told(
        &self,
        kind: &str,
        holder: Holder,
        id: WindowId,
        figures: [u64; 2],
        known: [u64; 2],
        line: &mut Line<'_>,
    ) {
        if line.redis.trace.is_none() {
            return;
        }
        let text = format!(
            "{{\"kind\":\"{kind}\",\"holder\":\"{}\",\"window\":\"{}\",\"told\":[{},{}],\"known\":[{},{}],\"rows\":{}}}",
            hex(&holder.0),
            hex(&id.0),
            figures[0],
            figures[1],
            known[0],
            known[1],
            self.window(id).map_or("null".to_owned(), rows)
        );
        Self::write(line, text);
    }

    /// Writes something that happened to the ledger, with all rows after it.
    pub(super) fn trace_event(&self, what: &str, ledger_us: i64, trace: &mut Vec<String>) {
        let all: Vec<String> = self.rows.windows.iter().map(rows).collect();
        trace.push(format!(
            "{{\"kind\":\"ledger\",\"what\":\"{what}\",\"ledger_us\":{ledger_us},\"timeline\":{},\"frozen_before_us\":{},\"rows\":[{}]}}",
            self.rows.timeline,
            self.frozen_before_us(),
            all.join(",")
        ));
    }
}
