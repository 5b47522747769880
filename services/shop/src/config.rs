//! What can be asked of the shop.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

/// The services in one process: to try, to show and to develop against.
#[derive(Debug, Parser)]
#[command(name = "shop", args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without it, serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve all services until Ctrl-C, and print grpcurl lines to paste (the default).
    Serve(Serve),
    /// Place three orders on fresh data, show each saga as it moves, and check the books.
    Demo,
    /// Place an order with services that run, and show its saga.
    Order(Order),
    /// Show every saga of services that run as it moves, until Ctrl-C.
    Watch(Watch),
    /// List the newest sagas of services that run, and those that are parked: on a terminal until Ctrl-C, else once.
    Sagas(Watch),
    /// Show one saga, or draw a definition.
    #[command(subcommand)]
    Saga(Saga),
    /// Show the circuit breakers of services that run: on a terminal until Ctrl-C, else once.
    Breakers(Breakers),
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// The folder of their databases; made when it is missing.
    #[arg(long, env = "SHOP_DATA_DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// The address to listen on, at the ports of the services themselves, from 50051 (inventory) on.
    // Not HOST: csh, conda and some distributions put the machine's name there.
    #[arg(long, env = "SHOP_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// How to log.
    #[command(flatten)]
    pub telemetry: libs::telemetry::Args,
}

/// Which order to place.
#[derive(Clone, Debug, Args)]
pub struct Order {
    /// What to order.
    #[arg(long, default_value = "tea")]
    pub sku: String,
    /// How much of it.
    // What is no quantity the service says.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    pub quantity: i64,
    /// Who orders.
    #[arg(long, default_value = "ada")]
    pub customer: String,
    /// Where to: a region code of two capital letters.
    #[arg(long, default_value = "CH")]
    pub region: String,
    /// Where the order service is.
    #[command(flatten)]
    pub at: OrderAddress,
}

/// Which sagas to watch.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    /// Where the order service is.
    #[command(flatten)]
    pub at: OrderAddress,
}

/// Whose breakers to show.
#[derive(Clone, Debug, Args)]
pub struct Breakers {
    /// Where the order service is.
    #[command(flatten)]
    pub at: OrderAddress,
    /// The inventory service's address.
    #[arg(long, env = "INVENTORY_ADDRESS", value_name = "URI", default_value = "http://127.0.0.1:50051")]
    pub inventory_address: String,
}

/// What to do with a saga.
#[derive(Clone, Debug, Subcommand)]
pub enum Saga {
    /// Show a saga's timeline and where it stands.
    Show(ShowSaga),
    /// Draw a definition as Mermaid.
    Graph(GraphSaga),
}

/// Which saga to show.
#[derive(Clone, Debug, Args)]
pub struct ShowSaga {
    /// The saga's id, which is the order's.
    #[arg(value_name = "ID")]
    pub saga_id: String,
    /// Where the order service is.
    #[command(flatten)]
    pub at: OrderAddress,
}

/// Which definition to draw.
#[derive(Clone, Debug, Args)]
pub struct GraphSaga {
    /// The saga's type.
    #[arg(value_name = "TYPE", default_value = "place-order")]
    pub saga_type: String,
    /// Where the order service is.
    #[command(flatten)]
    pub at: OrderAddress,
}

/// Where the order service is.
#[derive(Clone, Debug, Args)]
pub struct OrderAddress {
    /// The order service's address.
    #[arg(long = "order-address", env = "ORDER_ADDRESS", value_name = "URI", default_value = "http://127.0.0.1:50054")]
    pub address: String,
}

impl Cli {
    /// What is asked for.
    #[must_use]
    pub fn asked(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.serve))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn how_to_serve_is_read_from_variables_that_are_the_shops_own() {
        let command = Cli::command();
        for flag in ["data_dir", "host"] {
            let argument = command.get_arguments().find(|argument| argument.get_id() == flag).unwrap();
            let variable = argument.get_env().unwrap().to_str().unwrap();
            assert_eq!(variable, format!("SHOP_{}", flag.to_uppercase()));
        }
    }

    #[test]
    fn serving_is_the_default_with_its_flags() {
        let asked = |words: &[&str]| Cli::try_parse_from(words).unwrap().asked();
        assert!(matches!(asked(&["shop"]), Command::Serve(_)));
        assert!(matches!(asked(&["shop", "--data-dir", "x"]), Command::Serve(serve) if serve.data_dir == *"x"));
        assert!(matches!(asked(&["shop", "demo"]), Command::Demo));
    }
}
