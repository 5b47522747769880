//! Lines to paste: an order from the shelf to the books, as any gRPC client would send it.

/// A grpcurl line and what it is for.
#[derive(Debug)]
pub struct Recipe {
    /// What it is for.
    pub about: &'static str,
    /// The service, by name.
    pub service: &'static str,
    /// The method.
    pub method: &'static str,
    /// The request as JSON, empty for an empty one.
    pub request: &'static str,
}

/// In the order in which to paste them; every one can be pasted again.
pub const RECIPES: [Recipe; 7] = [
    Recipe {
        about: "fill the shelf",
        service: "inventory",
        method: "inventory.v1.InventoryCommandService/AddStock",
        request: r#"{"request_id":"try-stock","sku":"tea","quantity":100,"unit_price":{"currency_code":"EUR","units":12,"nanos":500000000}}"#,
    },
    Recipe {
        about: "give a customer money",
        service: "payment",
        method: "payment.v1.PaymentCommandService/DepositFunds",
        request: r#"{"request_id":"try-funds","customer_id":"ada","amount":{"currency_code":"EUR","units":500}}"#,
    },
    Recipe {
        about: "place an order and wait for its end",
        service: "order",
        method: "order.v1.OrderCommandService/PlaceOrder",
        request: r#"{"request_id":"try-order","order_id":"try-1","customer_id":"ada","items":[{"sku":"tea","quantity":2}],"address":{"region_code":"CH","address_lines":["1 Market Square"]},"wait_for_completion":true}"#,
    },
    Recipe {
        about: "look at it",
        service: "order",
        method: "order.v1.OrderQueryService/GetOrder",
        request: r#"{"order_id":"try-1"}"#,
    },
    Recipe {
        about: "look at all orders, the newest first",
        service: "order",
        method: "order.v1.OrderQueryService/ListOrders",
        request: "",
    },
    Recipe {
        about: "look at its saga: steps, attempts, history",
        service: "order",
        method: "saga.v1.SagaQueryService/GetSaga",
        request: r#"{"saga_id":"try-1"}"#,
    },
    Recipe {
        about: "look at the breakers between the services",
        service: "order",
        method: "breaker.v1.BreakerQueryService/ListBreakers",
        request: "",
    },
];

impl Recipe {
    /// The line, for a service at this authority (`localhost:50051`).
    #[must_use]
    pub fn line(&self, authority: &str) -> String {
        let data = if self.request.is_empty() { String::new() } else { format!("-d '{}' ", self.request) };
        format!("grpcurl -plaintext {data}{authority} {}", self.method)
    }
}

#[cfg(test)]
mod tests {
    use libs::cli::Program as _;

    use super::*;

    const README: &str = include_str!("../../../README.md");

    #[test]
    fn a_line_is_quoted_for_a_shell() {
        assert_eq!(
            RECIPES[3].line("localhost:4"),
            r#"grpcurl -plaintext -d '{"order_id":"try-1"}' localhost:4 order.v1.OrderQueryService/GetOrder"#
        );
        assert!(RECIPES.iter().all(|recipe| !recipe.request.contains('\'')));
    }

    #[test]
    fn the_readme_holds_what_is_printed_by_default() {
        let port = |service| match service {
            "inventory" => inventory::Service::PORT,
            "payment" => payment::Service::PORT,
            "order" => order::Service::PORT,
            other => panic!("no recipe is for {other}"),
        };
        let mut printed = String::new();
        for recipe in &RECIPES {
            let authority = format!("127.0.0.1:{}", port(recipe.service));
            printed.push_str(&format!("# {}\n{}\n", recipe.about, recipe.line(&authority)));
        }
        assert!(README.contains(&format!("```sh\n{printed}```\n")), "these lines are not in the README:\n{printed}");
    }
}
