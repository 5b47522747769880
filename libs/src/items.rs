//! What a list of SKUs and quantities must be, wherever one travels: in orders, reservations and parcels.

use std::collections::HashSet;

use crate::refusal::Violations;

/// The most items of a list.
pub const MOST_ITEMS: usize = 100;
/// The most units of an item.
pub const MOST_UNITS: i64 = 1_000_000;

/// Notes what is wrong with a list of SKUs and quantities.
pub fn check<'a>(items: impl ExactSizeIterator<Item = (&'a str, i64)>, field: &str, violations: &mut Violations) {
    if !(1..=MOST_ITEMS).contains(&items.len()) {
        // Nothing more is said about a list of a million.
        return violations.add(field, "must be 1 to 100 items");
    }
    let mut seen = HashSet::with_capacity(items.len());
    for (at, (sku, quantity)) in items.enumerate() {
        violations.id(sku, &format!("{field}[{at}].sku"));
        if !(1..=MOST_UNITS).contains(&quantity) {
            violations.add(format!("{field}[{at}].quantity"), "must be 1 to 1,000,000");
        }
        if !seen.insert(sku) {
            violations.add(format!("{field}[{at}].sku"), "must not be named twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_fields(items: &[(&str, i64)]) -> Vec<String> {
        let mut violations = Violations::default();
        check(items.iter().copied(), "items", &mut violations);
        match violations.refuse() {
            Ok(()) => Vec::new(),
            Err(refusal) => refusal.violations.into_iter().map(|violation| violation.field).collect(),
        }
    }

    #[test]
    fn one_to_a_hundred_items_of_one_to_a_million_units_pass() {
        let skus: Vec<String> = (0..101).map(|sku| sku.to_string()).collect();
        let items: Vec<(&str, i64)> = skus.iter().map(|sku| (sku.as_str(), 1)).collect();
        assert_eq!(wrong_fields(&items[..100]), [""; 0]);
        assert_eq!(wrong_fields(&items), ["items"]);
        assert_eq!(wrong_fields(&[]), ["items"]);
        assert_eq!(wrong_fields(&[("tea", 1_000_000)]), [""; 0]);
    }

    #[test]
    fn each_wrong_item_is_named_by_its_place() {
        let items = [("tea", 0), ("", 1), ("tea", 1_000_001), ("a b", -1)];
        let fields = [
            "items[0].quantity",
            "items[1].sku",
            "items[2].quantity",
            "items[2].sku",
            "items[3].sku",
            "items[3].quantity",
        ];
        assert_eq!(wrong_fields(&items), fields);
    }
}
