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
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let cli = match libs::cli::asked::<Cli>() {
        Ok(cli) => cli,
        Err(end) => return end,
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let ended = runtime.block_on(run(cli.asked()));
    // A blocking read that does not end must not keep the process.
    runtime.shutdown_background();
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // Whoever read has seen enough: that is no failure.
    let unread = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(unread) { ExitCode::SUCCESS } else { failed(&error) }
}

async fn run(asked: Command) -> anyhow::Result<()> {
    let screen = Screen::stdout();
    match asked {
        Command::Serve(asked) => serve::run(&asked, screen).await,
        Command::Demo => demo::run(screen).await,
        Command::Order(asked) => order::run(asked, screen).await,
        Command::Watch(asked) => watch::run(&asked, screen).await,
        Command::Sagas(asked) => sagas::list(&asked, screen).await,
        Command::Saga(Saga::Show(asked)) => sagas::show(asked, screen).await,
        Command::Saga(Saga::Graph(asked)) => sagas::graph(asked, screen).await,
        Command::Breakers(asked) => breakers::run(&asked, screen).await,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {}", printable(&format!("{error:#}")));
    // As the services themselves end.
    let wrong_variable = error.downcast_ref::<TelemetryError>().is_some_and(TelemetryError::is_wrong_variable);
    ExitCode::from(if wrong_variable { 2 } else { 1 })
}
