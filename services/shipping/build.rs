//! Generates the surfaces from the contract.

fn main() -> Result<(), codegen::Error> {
    codegen::Contracts::load("../../proto")?.surfaces("shipping.v1")?.write()
}
