//! Generates the surfaces from the contract.

fn main() -> Result<(), codegen::Error> {
    codegen::Contracts::load("../../proto")?
        .surfaces("order.v1")?
        .steps("inventory.v1")?
        .steps("payment.v1")?
        .steps("shipping.v1")?
        .write()
}
