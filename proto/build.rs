//! Compiles every contract with protox: no protoc to install.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// The packages, each a folder below this one.
const FILES: &[&str] = &[
    "libs/v1/options.proto",
    "inventory/v1/command.proto",
    "inventory/v1/query.proto",
    "inventory/v1/event.proto",
    "inventory/v1/state.proto",
    "payment/v1/command.proto",
    "payment/v1/query.proto",
    "payment/v1/event.proto",
    "payment/v1/state.proto",
    "shipping/v1/command.proto",
    "shipping/v1/query.proto",
    "shipping/v1/event.proto",
    "shipping/v1/state.proto",
    "order/v1/command.proto",
    "order/v1/query.proto",
    "order/v1/event.proto",
    "order/v1/state.proto",
    "saga/v1/barrier.proto",
    "saga/v1/command.proto",
    "saga/v1/query.proto",
    "saga/v1/record.proto",
    "breaker/v1/command.proto",
    "breaker/v1/query.proto",
    "events/v1/events.proto",
    "projections/v1/projections.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for package in
        ["libs", "inventory", "payment", "shipping", "order", "saga", "breaker", "events", "projections", "google"]
    {
        println!("cargo::rerun-if-changed={package}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    // Encoded by protox itself: a prost-types descriptor would drop our own method options.
    let encoded = compiler.encode_file_descriptor_set();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &encoded)?;
    let descriptors = protox::prost_reflect::prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    // Absent in every saga under way, or in most: there may be a hundred thousand in memory.
    let boxed = [".saga.v1.SagaRecord.saga", ".saga.v1.StepRecord.refusal"];
    let settings = tonic_prost_build::configure()
        .bytes(".")
        // Maps in order: a command is known again by a hash of its bytes, which must be the same in whatever process encodes it.
        .btree_map(".");
    let settings = boxed.into_iter().fold(settings, |settings, path| settings.boxed(path));
    settings.compile_fds(descriptors)?;
    Ok(())
}
