//! Writes the committed Rust code of the proto packages: `proto-gen PROTO_ROOT GOOGLE_ROOT OUT_DIR`.
//!
//! `GOOGLE_ROOT` holds `google/api/*.proto`, which annotate services; no code is made of those.
//! Uses protox, so that no `protoc` is needed. The file descriptor set goes beside the code, for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const SOURCES: [&str; 10] = [
    "tollkeeper/quota/v1/quota.proto",
    "tollkeeper/quota/v1/error.proto",
    "tollkeeper/ledger/v1/decisions.proto",
    "tollkeeper/ledger/v1/limits.proto",
    "tollkeeper/ledger/v1/usage.proto",
    "tollkeeper/bridge/v1/bridge.proto",
    "tollkeeper/bridge/v1/log.proto",
    "tollkeeper/bridge/v1/snapshot.proto",
    "tollkeeper/quota/v1/usage.proto",
    "tollkeeper/quota/v1/decision.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(root), Some(google), Some(out)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: proto-gen PROTO_ROOT GOOGLE_ROOT OUT_DIR".into());
    };
    fs::create_dir_all(&out)?;
    let mut descriptors = protox::compile(SOURCES, [&root, &google])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    descriptors
        .file
        .retain(|file| file.package() != "google.api");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(&out)
        .bytes(".tollkeeper.bridge")
        .compile_fds(descriptors)?;
    Ok(())
}
