//! Saga operations: each command as a type that a saga's definition can name, and the pairs that undo each other.

use std::fmt::Write as _;

use crate::{
    contract::{Method, Service},
    docs::{ALLOW, doc},
    names,
};

pub(crate) fn operations(service: &Service) -> String {
    let mut text = String::new();
    for Method { name, request, response, comment, compensated_by, .. } in
        service.methods.iter().filter(|method| !method.by_hand)
    {
        let step = names::step(name);
        text.push_str(&doc(comment, ""));
        let _ = writeln!(
            text,
            "{ALLOW}\n#[derive(Clone, Copy, Debug)]\npub struct {step};\n\n\
             impl libs::saga::Operation for {step} {{\n\
             \x20   const PEER: &'static str = \"{peer}\";\n\
             \x20   const PATH: &'static str = \"/{full}/{name}\";\n\
             \x20   type Request = {request};\n    type Reply = {response};\n}}\n",
            peer = service.peer,
            full = service.full_name,
        );
        if let Some(undo) = compensated_by {
            let undo = names::step(undo);
            let _ = writeln!(text, "impl libs::saga::Compensated for {step} {{\n    type Compensation = {undo};\n}}\n");
        }
    }
    text
}
