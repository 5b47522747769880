//! Names as prost and tonic write them: what is generated here must find what they generated.

use heck::{ToSnakeCase as _, ToUpperCamelCase as _};
use prost_reflect::MessageDescriptor;

/// Words that are raw identifiers where they are names.
const KEYWORDS: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn", "else", "enum",
    "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut",
    "override", "priv", "pub", "ref", "return", "static", "struct", "trait", "true", "try", "type", "typeof", "unsafe",
    "unsized", "use", "virtual", "where", "while", "yield",
];
/// Words that can't even be that.
const NEVER: &[&str] = &["self", "Self", "super", "crate", "extern", "_"];

/// A field or a method, such as `r#type` for `type`.
pub(crate) fn value(name: &str) -> String {
    identifier(name.to_snake_case())
}

/// A message or a service, such as `AddSkuRequest` for `AddSKURequest`.
pub(crate) fn item(name: &str) -> String {
    identifier(name.to_upper_camel_case())
}

/// The step that a method becomes: as the contract writes it, where a type may have that name.
pub(crate) fn step(method: &str) -> String {
    identifier(method.to_owned())
}

/// The modules of a package, such as `proto::google::r#type` for `google.type`.
pub(crate) fn module(package: &str) -> String {
    let parts = package.split('.').filter(|part| !part.is_empty()).map(value);
    std::iter::once("proto".to_owned()).chain(parts).collect::<Vec<_>>().join("::")
}

/// The server that tonic generates for a service: `proto::toy::v1::toy_command_service_server::ToyCommandService`.
pub(crate) fn server(package: &str, service: &str) -> String {
    let service = item(service);
    // Each capital begins a word to tonic, which knows no abbreviations.
    let mut within = String::new();
    for letter in service.chars() {
        if letter.is_uppercase() && !within.is_empty() {
            within.push('_');
        }
        within.push(letter.to_ascii_lowercase());
    }
    format!("{}::{within}_server::{service}", module(package))
}

/// A message that a method takes or answers. None for one of Google's well-known ones, which prost doesn't generate, but for an empty one.
pub(crate) fn message(message: &MessageDescriptor) -> Option<String> {
    if message.full_name() == "google.protobuf.Empty" {
        return Some("()".to_owned());
    }
    if message.package_name() == "google.protobuf" {
        return None;
    }
    let mut path = item(message.name());
    let mut outer = message.parent_message();
    while let Some(parent) = outer {
        path = format!("{}::{path}", value(parent.name()));
        outer = parent.parent_message();
    }
    Some(format!("{}::{path}", module(message.package_name())))
}

/// The service that a package is of: its last part that is no version, `inventory` of `acme.inventory.v1`.
pub(crate) fn peer(package: &str) -> &str {
    let is_version =
        |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()));
    package.rsplit('.').find(|part| !is_version(part)).unwrap_or(package)
}

fn identifier(name: String) -> String {
    if KEYWORDS.contains(&&*name) {
        format!("r#{name}")
    } else if NEVER.contains(&&*name) {
        format!("{name}_")
    } else if name.starts_with(char::is_numeric) {
        format!("_{name}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_prost_and_tonic() {
        assert_eq!((value("Move"), value("toyId"), value("self")), ("r#move".into(), "toy_id".into(), "self_".into()));
        assert_eq!((item("AddSKURequest"), item("OAuth2Token")), ("AddSkuRequest".into(), "OAuth2Token".into()));
        assert_eq!(module("google.type"), "proto::google::r#type");
        assert_eq!(
            server("toy.v1", "SKUCommandService"),
            "proto::toy::v1::sku_command_service_server::SkuCommandService"
        );
    }

    #[test]
    fn a_package_is_of_the_service_that_it_names() {
        assert_eq!((peer("inventory.v1"), peer("acme.shop.inventory.v2beta1")), ("inventory", "inventory"));
        assert_eq!((peer("inventory"), peer("vault.v1"), peer("v1")), ("inventory", "vault", "v1"));
    }
}
