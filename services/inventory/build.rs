//! Generates the surfaces from the contract.

fn main() -> Result<(), codegen::Error> {
    codegen::Contracts::load("../../proto")?.surfaces("inventory.v1")?.write()
}
