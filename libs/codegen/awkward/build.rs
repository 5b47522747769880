//! Generates what prost and tonic make of the contract, and the surfaces that must fit it.

use std::error::Error;

use prost::Message as _;

// One folder of contracts, as a project has: its own, and a link to the options.
const CONTRACTS: &str = "contracts";

fn main() -> Result<(), Box<dyn Error>> {
    let mut compiler = protox::Compiler::new([CONTRACTS])?;
    compiler.include_imports(true).open_files(["acme/type/v1/sku.proto"])?;
    let descriptors = compiler.encode_file_descriptor_set();
    let descriptors = protox::prost_reflect::prost_types::FileDescriptorSet::decode(descriptors.as_slice())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    codegen::Contracts::load(CONTRACTS)?.surfaces("acme.type.v1")?.steps("acme.type.v1")?.write()?;
    Ok(())
}
