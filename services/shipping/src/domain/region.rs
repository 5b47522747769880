//! Where the carrier goes.

/// The regions served, as CLDR codes: most of Europe, North America, and a few around the Pacific.
pub const SERVED: &[&str] = &[
    "AD", "AT", "AU", "BE", "BG", "CA", "CH", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GB", "GR", "HR", "HU",
    "IE", "IS", "IT", "JP", "KR", "LI", "LT", "LU", "LV", "MC", "MT", "MX", "NL", "NO", "NZ", "PL", "PT", "RO", "SE",
    "SG", "SI", "SK", "SM", "TW", "US", "VA",
];

/// True if parcels can be sent there.
#[must_use]
pub fn is_served(region_code: &str) -> bool {
    SERVED.binary_search(&region_code).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_listed_is_found() {
        assert!(SERVED.is_sorted(), "the search needs them in order");
        assert!(SERVED.iter().all(|region| is_served(region)));
        assert!(!is_served("AQ") && !is_served("") && !is_served("ch"));
    }
}
