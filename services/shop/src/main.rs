//! Runs the shop.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use libs::telemetry::TelemetryError;
use shop::{
    breakers,
    config::{Cli, Command, Saga},
    demo, order, sagas,
    screen::{Screen, printable},
    serve, watch,
};

#[tokio::main]
async fn main() -> ExitCode {
    let screen = Screen::stdout();
    let cli = match libs::cli::asked::<Cli>() {
        Ok(cli) => cli,
        Err(end) => return end,
    };
    let ended = match cli.asked() {
        Command::Serve(asked) => serve::run(&asked, screen).await,
        Command::Demo => demo::run(screen).await,
        Command::Order(asked) => order::run(asked, screen).await,
        Command::Watch(asked) => watch::run(&asked, screen).await,
        Command::Sagas(asked) => sagas::list(&asked, screen).await,
        Command::Saga(Saga::Show(asked)) => sagas::show(asked, screen).await,
        Command::Saga(Saga::Graph(asked)) => sagas::graph(asked, screen).await,
        Command::Breakers(asked) => breakers::run(&asked, screen).await,
    };
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // Whoever read has seen enough: that is no failure.
    let unread = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(unread) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "error: {}", printable(&format!("{error:#}")));
    // As the services themselves end.
    let wrong_variable = error.downcast_ref::<TelemetryError>().is_some_and(TelemetryError::is_wrong_variable);
    ExitCode::from(if wrong_variable { 2 } else { 1 })
}
