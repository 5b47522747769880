//! What of a `google.type.PostalAddress` is needed, and how much of it is too much.

use proto::google::r#type::PostalAddress;

use crate::refusal::Violations;

/// The most characters of a line.
const LONGEST_LINE: usize = 200;
/// The most lines of address, and the most recipients.
const MOST_LINES: usize = 10;

/// Notes what is wrong with an address that must be there: a region of two capital letters and one address line are needed.
pub fn check(address: Option<&PostalAddress>, field: &str, violations: &mut Violations) {
    let Some(address) = address else { return violations.add(field, "is needed") };
    let at = |name: &str| format!("{field}.{name}");
    violations.require(address.revision == 0, &at("revision"), "must be 0, the only revision there is");
    if address.region_code.len() != 2 || !address.region_code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        violations.add(at("region_code"), "must be a CLDR region code of two capital letters, such as CH");
    }
    let optional = [
        ("language_code", &address.language_code),
        ("postal_code", &address.postal_code),
        ("sorting_code", &address.sorting_code),
        ("administrative_area", &address.administrative_area),
        ("locality", &address.locality),
        ("sublocality", &address.sublocality),
        ("organization", &address.organization),
    ];
    for (name, value) in optional {
        if !fits(value) {
            violations.add(at(name), TOO_LONG);
        }
    }
    if address.address_lines.iter().all(|line| line.trim().is_empty()) {
        violations.add(at("address_lines"), "must hold at least one line");
    }
    for (name, lines) in [("address_lines", &address.address_lines), ("recipients", &address.recipients)] {
        if lines.len() > MOST_LINES {
            violations.add(at(name), "must be at most 10 lines");
        } else if !lines.iter().all(|line| fits(line)) {
            violations.add(at(name), TOO_LONG);
        }
    }
}

const TOO_LONG: &str = "must be at most 200 characters each";

fn fits(line: &str) -> bool {
    // Bytes first: nobody counts the characters of a megabyte.
    line.len() <= 4 * LONGEST_LINE && line.chars().count() <= LONGEST_LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> PostalAddress {
        PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned(), "8001 Zürich".to_owned()],
            ..PostalAddress::default()
        }
    }

    fn wrong_fields(address: Option<&PostalAddress>) -> Vec<String> {
        let mut violations = Violations::default();
        check(address, "address", &mut violations);
        match violations.refuse() {
            Ok(()) => Vec::new(),
            Err(refusal) => refusal.violations.into_iter().map(|violation| violation.field).collect(),
        }
    }

    #[test]
    fn a_region_and_a_line_are_enough() {
        assert_eq!(wrong_fields(Some(&home())), [""; 0]);
    }

    #[test]
    fn an_absent_address_is_one_violation_and_an_empty_one_names_what_is_needed() {
        assert_eq!(wrong_fields(None), ["address"]);
        assert_eq!(wrong_fields(Some(&PostalAddress::default())), ["address.region_code", "address.address_lines"]);
    }

    #[test]
    fn regions_are_two_capital_letters() {
        for region_code in ["ch", "CHE", "C", "1A", "É"] {
            let address = PostalAddress { region_code: region_code.to_owned(), ..home() };
            assert_eq!(wrong_fields(Some(&address)), ["address.region_code"], "{region_code}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_counted_in_characters() {
        let long = PostalAddress { locality: "ü".repeat(200), ..home() };
        assert_eq!(wrong_fields(Some(&long)), [""; 0]);
        let too_long = PostalAddress {
            locality: "x".repeat(201),
            address_lines: vec!["x".to_owned(); 11],
            recipients: vec!["x".repeat(1 << 20)],
            ..home()
        };
        let fields = ["address.locality", "address.address_lines", "address.recipients"];
        assert_eq!(wrong_fields(Some(&too_long)), fields);
    }
}
