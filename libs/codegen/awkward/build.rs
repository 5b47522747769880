//! Generates what prost and tonic make of the contract, and the surfaces that must fit it.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

const CONTRACT: &str = "acme/type/v1/sku.proto";

fn main() -> Result<(), Box<dyn Error>> {
    // One folder of contracts, as a project has: its own, and the options.
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let contracts = Path::new(&out).join("contracts");
    let options = "libs/v1/options.proto";
    for (from, name) in [("contracts", CONTRACT), ("../../../proto", options)] {
        let (from, to) = (Path::new(from).join(name), contracts.join(name));
        println!("cargo::rerun-if-changed={}", from.display());
        fs::create_dir_all(to.parent().ok_or("it has a folder")?)?;
        fs::copy(from, to)?;
    }
    let mut compiler = protox::Compiler::new([&contracts])?;
    compiler.include_imports(true).open_files([CONTRACT])?;
    let descriptors = compiler.encode_file_descriptor_set();
    let descriptors = protox::prost_reflect::prost_types::FileDescriptorSet::decode(descriptors.as_slice())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    codegen::Contracts::load(&contracts)?.surfaces("acme.type.v1")?.steps("acme.type.v1")?.write()?;
    Ok(())
}
