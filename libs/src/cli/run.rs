//! From what was typed to an exit code: 0 done, 1 failed, 2 wrong flags.

use std::{error::Error, ffi::OsString, fmt::Write as _, io::Write as _, pin::pin, process::ExitCode};

use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind, parser::ValueSource,
};

use super::{BoxError, Program, Serve, Store, health, signal::unless_told_to_stop, unsaid::without_passwords};
use crate::{
    rpc::client::PeerError,
    service::{App, StartError},
    telemetry::{self, TelemetryError},
};

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop; what happens without a subcommand too.
    Serve(Box<Serve>),
    /// Bring the database to what this version needs, and end.
    Migrate(Store),
    /// Make the views anew from the events, and end.
    Rebuild(Store),
    /// Ask a server on this machine whether it serves; for probes.
    Health(health::Health),
}

/// Runs a service's program with the arguments of this process.
///
/// ```no_run
/// # use libs::{cli::{BoxError, Program, Serve, Store}, service::App};
/// # struct Inventory;
/// # impl Program for Inventory {
/// #     const NAME: &'static str = "inventory"; const VERSION: &'static str = "1.0.0"; const PORT: u16 = 50051; const ABOUT: &'static str = "";
/// #     async fn assemble(_: &mut App, _: &Serve) -> Result<(), BoxError> { Ok(()) }
/// #     async fn migrate(_: &Store) -> Result<(), BoxError> { Ok(()) }
/// #     async fn rebuild(_: &Store) -> Result<(), BoxError> { Ok(()) }
/// # }
/// fn main() -> std::process::ExitCode {
///     libs::cli::run::<Inventory>()
/// }
/// ```
#[must_use]
pub fn run<P: Program>() -> ExitCode {
    let line = match parse::<P>(std::env::args_os()) {
        Ok(line) => line,
        Err(error) => return not_asked(&error),
    };
    let command = line.command.unwrap_or_else(|| Command::Serve(Box::new(line.serve)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let ended = runtime.block_on(execute::<P>(command));
    // A blocking read that does not end must not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| match found_wrong(&error) {
        Some(why) => wrong_flags(&why),
        None => failed(&*error),
    })
}

/// What is wrong with a flag or a variable that clap found nothing wrong with: it knows no service's peers, opens no file, and sees only
/// the variables of flags.
fn found_wrong(error: &BoxError) -> Option<String> {
    if let Some(error) = error.downcast_ref::<PeerError>() {
        let typed = !matches!(error, PeerError::Undeclared { .. });
        return typed.then(|| format!("--peer: {error}"));
    }
    if let Some(error) = error.downcast_ref::<StartError>() {
        let is_wrong = matches!(error, StartError::File { .. } | StartError::Tls(_) | StartError::Broker(_));
        return is_wrong.then(|| error.to_string());
    }
    let telemetry = error.downcast_ref::<TelemetryError>().filter(|error| error.is_wrong_variable());
    telemetry.map(ToString::to_string)
}

async fn execute<P: Program>(command: Command) -> Result<ExitCode, BoxError> {
    match command {
        Command::Serve(flags) => serve::<P>(&flags).await?,
        Command::Migrate(store) => once::<P>("migrate", &store, P::migrate(&store)).await?,
        Command::Rebuild(store) => once::<P>("rebuild", &store, P::rebuild(&store)).await?,
        Command::Health(flags) => return health::ask(&flags).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does what has an end of its own.
async fn once<P: Program>(
    word: &str,
    store: &Store,
    work: impl Future<Output = Result<(), BoxError>>,
) -> Result<(), BoxError> {
    let _telemetry = telemetry::init(P::NAME, P::VERSION, &telemetry::Args::default())?;
    store.database_url.tell_of_too_little();
    unless_told_to_stop(word, work).await
}

async fn serve<P: Program>(flags: &Serve) -> Result<(), BoxError> {
    flags.check_peers(P::PEERS)?;
    let telemetry = telemetry::init(P::NAME, P::VERSION, &flags.telemetry)?;
    flags.store.database_url.tell_of_too_little();
    let ended = serve_until::<P>(flags, super::shutdown()?).await;
    // Last of all, so that what the draining said goes out too; and whether or not it went well.
    telemetry.flush().await;
    ended
}

/// Assembles a service and serves until it is told to stop, whichever of the two it is at then.
async fn serve_until<P: Program>(flags: &Serve, shutdown: impl Future<Output = ()>) -> Result<(), BoxError> {
    let mut shutdown = pin!(shutdown);
    // A database or a broker may let it wait for long.
    let mut app = tokio::select! {
        bound = App::bind(P::NAME, flags) => bound?,
        () = &mut shutdown => return Ok(()),
    };
    let is_whole = tokio::select! {
        assembled = P::assemble(&mut app, flags) => assembled.map(|()| true)?,
        () = &mut shutdown => false,
    };
    if is_whole {
        app.run_until(shutdown).await?
    } else {
        app.end_unserved().await?
    }
    Ok(())
}

fn parse<P: Program>(arguments: impl IntoIterator<Item = OsString>) -> Result<Line, clap::Error> {
    parse_as(command_line::<P>(), arguments)
}

fn parse_as(command: clap::Command, arguments: impl IntoIterator<Item = OsString>) -> Result<Line, clap::Error> {
    let matches = matches(command, arguments)?;
    let mut line = Line::from_arg_matches(&matches).map_err(without_passwords)?;
    if let (Some(Command::Health(health)), Some(("health", matches))) = (&mut line.command, matches.subcommand()) {
        health.ask_as_it_serves(matches.value_source("tls_ca") == Some(ValueSource::EnvVariable));
    }
    Ok(line)
}

/// Reads what was typed.
fn matches(command: clap::Command, arguments: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Flags and subcommands exclude each other, so the first word tells. With a subcommand only its own flags count, and what another
    // program's variable holds must not be found wrong by those beside it.
    let is_subcommand = arguments.get(1).is_some_and(|word| command.find_subcommand(word).is_some());
    let command = if is_subcommand { command.mut_args(|arg| arg.env(None::<&str>)) } else { command };
    // A word too few is told as what else is wrong, not by a page of help.
    let matches = command.mut_subcommands(|word| word.arg_required_else_help(false)).try_get_matches_from(arguments);
    matches.map_err(without_passwords)
}

/// The shared line with this service's own name and defaults.
fn command_line<P: Program>() -> clap::Command {
    let or_else = |command: clap::Command, flag: &str, default: String| {
        command.mut_arg(flag, |arg| arg.required(false).default_value(default))
    };
    let listen = |command| or_else(command, "listen", format!("0.0.0.0:{}", P::PORT));
    let database = |command| or_else(command, "database_url", format!("sqlite:data/{}.db", P::NAME));
    listen(database(Line::command()))
        .name(P::NAME)
        .version(P::VERSION)
        .about(P::ABOUT)
        .mut_subcommand("serve", |command| listen(database(command)))
        .mut_subcommand("migrate", database)
        .mut_subcommand("rebuild", database)
        .mut_subcommand("health", listen)
}

/// Clap's first paragraph on one line: what is wrong, without the usage that `--help` has.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or(&text);
    let words: Vec<&str> = first.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

/// What a program is asked to do that is no service.
///
/// # Errors
/// How to end: where help was asked for, or something is wrong, which is told in one line.
pub fn asked<A: Parser>() -> Result<A, ExitCode> {
    asked_by(std::env::args_os()).map_err(|error| not_asked(&error))
}

fn asked_by<A: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<A, clap::Error> {
    A::from_arg_matches(&matches(A::command(), arguments)?).map_err(|error| error.format(&mut A::command()))
}

/// Tells why there is nothing to do.
fn not_asked(error: &clap::Error) -> ExitCode {
    if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return wrong_flags(&one_line(error));
    }
    let _ = error.print();
    ExitCode::SUCCESS
}

fn wrong_flags(why: &str) -> ExitCode {
    say(&format!("{why} (see --help)"));
    ExitCode::from(2)
}

fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Many errors tell their source's message as part of their own.
        let cause = error.to_string();
        if !line.contains(&cause) {
            let _ = write!(line, ": {cause}");
        }
        source = error.source();
    }
    say(&line);
    ExitCode::FAILURE
}

fn say(line: &str) {
    let line: Vec<&str> = line.split_whitespace().collect();
    let _ = writeln!(std::io::stderr(), "error: {}", line.join(" "));
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::{Notify, oneshot};

    use super::*;
    use crate::{
        breaker::Registry,
        cli::{DatabaseUrl, Limits, Surface},
    };

    struct Tea;

    impl Program for Tea {
        const NAME: &'static str = "tea";
        const VERSION: &'static str = "1.2.3";
        const PORT: u16 = 50099;
        const ABOUT: &'static str = "Serves tea.";

        async fn assemble(_: &mut App, _: &Serve) -> Result<(), BoxError> {
            Ok(())
        }

        async fn migrate(_: &Store) -> Result<(), BoxError> {
            Ok(())
        }

        async fn rebuild(_: &Store) -> Result<(), BoxError> {
            Ok(())
        }
    }

    /// Waits for ever for what it needs, with something to be put away by then.
    struct Waiting;

    impl Program for Waiting {
        const NAME: &'static str = "waiting";
        const VERSION: &'static str = Tea::VERSION;
        const PORT: u16 = Tea::PORT;
        const ABOUT: &'static str = Tea::ABOUT;

        async fn assemble(app: &mut App, _: &Serve) -> Result<(), BoxError> {
            let (close, closed) = oneshot::channel();
            let close = move || close.send(()).unwrap_or_default();
            app.task_until_drained("what is shared", async { Ok::<_, BoxError>(closed.await?) }, close);
            app.on_drain("its share", async { PUT_AWAY.notify_one() });
            ASSEMBLING.notify_one();
            std::future::pending().await
        }

        async fn migrate(_: &Store) -> Result<(), BoxError> {
            Ok(())
        }

        async fn rebuild(_: &Store) -> Result<(), BoxError> {
            Ok(())
        }
    }

    static ASSEMBLING: Notify = Notify::const_new();
    static PUT_AWAY: Notify = Notify::const_new();

    #[tokio::test]
    async fn what_is_told_to_stop_before_it_is_whole_is_put_away_as_far_as_it_is() {
        let flags = Serve::new("127.0.0.1:0".parse().expect("an address"), DatabaseUrl::Sqlite("data/tea.db".into()));
        serve_until::<Waiting>(&flags, ASSEMBLING.notified()).await.expect("it ends well");
        PUT_AWAY.notified().now_or_never().expect("what was there is put away");
    }

    fn typed(words: &[&str]) -> Result<Line, clap::Error> {
        parse::<Tea>(std::iter::once("tea").chain(words.iter().copied()).map(OsString::from))
    }

    fn served(words: &[&str]) -> Serve {
        let line = typed(words).expect("right flags");
        match line.command {
            None => line.serve,
            Some(Command::Serve(flags)) => *flags,
            Some(other) => panic!("{other:?} is not serve"),
        }
    }

    #[test]
    fn the_command_line_is_well_made() {
        command_line::<Tea>().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_word() {
        for words in [&[][..], &["serve"][..]] {
            let flags = served(words);
            assert_eq!(flags.listen.to_string(), "0.0.0.0:50099");
            assert_eq!(flags.store.database_url, DatabaseUrl::Sqlite("data/tea.db".into()));
            assert_eq!(flags.surface, Surface::All);
            assert_eq!(format!("{:?}", flags.limits), format!("{:?}", Limits::default()), "typed and built defaults");
        }
    }

    #[test]
    fn peers_repeat_or_stand_in_a_list() {
        let words = ["serve", "--peer", "a=http://a:1,http://a:2,b=http://b:1", "--peer", "a=http://a:3"];
        let defaults = [("a", "http://localhost:1"), ("b", "http://localhost:2"), ("c", "http://localhost:3")];
        let peers = served(&words).known_peers("tea", Registry::new(), &defaults).expect("all are known");
        assert_eq!(["a", "b", "c"].map(|name| peers.addresses(name).len()), [3, 1, 1]);
    }

    #[test]
    fn wrong_flags_are_told_in_one_line() {
        let wrong: &[(&[&str], &str)] = &[
            (&["--listen", "here"], "--listen"),
            (&["--drain-timeout", "20"], "--drain-timeout"),
            (&["--surface", "half"], "--surface"),
            (&["--tls-cert", "a.pem"], "--tls-key"),
            (&["--max-streams", "0"], "--max-streams"),
            (&["--max-header-bytes", "0"], "--max-header-bytes"),
            (&["--max-message-bytes", "131071"], "--max-message-bytes"),
            (&["--max-request-bytes", "65535"], "--max-request-bytes"),
            (&["--max-request-bytes", "4194305"], "--max-request-bytes"),
            (&["--nats-url", "localhost:4222"], "--nats-url"),
            (&["brew"], "brew"),
        ];
        for (words, says) in wrong {
            let line = one_line(&typed(words).expect_err("wrong"));
            assert!(line.contains(says) && !line.contains('\n') && !line.starts_with("error"), "{words:?}: {line}");
        }
    }

    #[test]
    fn what_a_subcommand_is_not_told_by_is_not_read() {
        // No test may set a variable: others read them at the same time. This one is set everywhere, and is no database.
        let foreign = || command_line::<Tea>().mut_arg("database_url", |arg| arg.env("PATH"));
        let typed = |words: &[&str]| parse_as(foreign(), words.iter().copied().map(OsString::from));
        let (url, sqlite) = ("--database-url", "sqlite:x");
        let right: [&[&str]; 3] =
            [&["tea", "serve", url, sqlite], &["tea", "migrate", url, sqlite], &["tea", "health"]];
        for words in right {
            assert!(typed(words).is_ok(), "{words:?}");
        }
        assert!(typed(&["tea", url, sqlite]).is_ok(), "what is typed comes first");
        let line = one_line(&typed(&["tea"]).expect_err("it is read where nothing is typed"));
        assert!(line.contains(url), "{line}");
    }

    /// What is no service. Its variable is set everywhere, and is no number.
    #[derive(Debug, Parser)]
    #[command(args_conflicts_with_subcommands = true)]
    struct Kettle {
        #[command(subcommand)]
        command: Option<Use>,
        #[arg(long, env = "PATH")]
        litres: Option<u8>,
    }

    #[derive(Debug, Subcommand)]
    enum Use {
        Boil,
        #[command(subcommand)]
        Pour(Pour),
    }

    #[derive(Debug, Subcommand)]
    enum Pour {
        Tea,
        Coffee,
    }

    #[test]
    fn what_is_no_service_reads_its_line_alike() {
        let typed = |words: &[&str]| asked_by::<Kettle>(words.iter().copied().map(OsString::from));
        assert!(matches!(typed(&["kettle", "boil"]), Ok(Kettle { command: Some(Use::Boil), litres: None })));
        assert!(matches!(typed(&["kettle", "--litres", "1"]), Ok(Kettle { command: None, litres: Some(1) })));
        let pours = typed(&["kettle", "pour", "coffee"]).map(|kettle| kettle.command);
        assert!(matches!(pours, Ok(Some(Use::Pour(Pour::Coffee)))), "{pours:?}");
        let line = one_line(&typed(&["kettle", "postgres://me:secret@db/x"]).expect_err("no use"));
        assert!(!line.contains("secret"), "{line}");
        for (words, says) in [(&["kettle"][..], &["--litres"][..]), (&["kettle", "pour"], &["pour", "tea", "coffee"])] {
            let line = one_line(&typed(words).expect_err("wrong"));
            assert!(says.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
    }

    #[test]
    fn what_tls_needs_is_asked_for_before_anything_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "-----BEGIN PRIVATE KEY-----").expect("written");
        let empty = empty.to_str().expect("a path");
        let wrong: &[(&[&str], &str)] = &[
            (&["serve", "--tls-ca", "missing.pem"], "--tls-ca missing.pem: "),
            (&["serve", "--tls-cert", "missing.pem", "--tls-key", "missing.key"], "--tls-cert missing.pem: "),
            (&["serve", "--tls-ca", empty], "no certificate in it"),
            (&["serve", "--peer", "a=https://a:1"], "--tls-ca"),
        ];
        for (words, says) in wrong {
            let error = served(words).check_peers(&[("a", "http://localhost:1")]).expect_err("wrong");
            let line = found_wrong(&error).unwrap_or_else(|| panic!("{words:?}: {error} is not a wrong flag"));
            assert!(line.contains(says) && !line.contains('\n'), "{words:?}: {line}");
        }
        let file = StartError::File { flag: "--tls-cert", path: empty.into(), source: std::io::Error::other("gone") };
        assert!(found_wrong(&file.into()).is_some());
        let taken = StartError::Listen { address: ([127, 0, 0, 1], 1).into(), source: std::io::Error::other("taken") };
        assert!(found_wrong(&taken.into()).is_none(), "what is typed is right");
    }

    #[test]
    fn what_is_no_broker_to_whoever_connects_is_a_wrong_flag() {
        let line = found_wrong(&StartError::Broker("it has two passwords".into()).into()).expect("it is typed");
        assert!(line.starts_with("--nats-url") && line.contains("two passwords"), "{line}");
    }

    #[test]
    fn a_peer_that_the_program_forgot_is_no_wrong_flag() {
        let (name, known) = ("a".to_owned(), "none".to_owned());
        let forgotten = PeerError::Undeclared { name: name.clone(), known: known.clone() };
        assert_eq!(found_wrong(&forgotten.into()), None);
        let typed = found_wrong(&PeerError::Unknown { name, known }.into()).expect("typed");
        assert!(typed.starts_with("--peer: "), "{typed}");
    }

    #[test]
    fn health_asks_as_the_server_serves() {
        // No test may set a variable. This one is set everywhere, and names a file as well as any.
        let with_variable =
            || command_line::<Tea>().mut_subcommand("health", |health| health.mut_arg("tls_ca", |arg| arg.env("PATH")));
        let pair = ["--tls-cert", "a.pem", "--tls-key", "a.key"];
        let cases: [(&[&str], bool); 3] = [(&[], false), (&pair, true), (&["--tls-ca", "ca.pem"], true)];
        for (words, by_tls) in cases {
            let words = ["tea", "health"].iter().chain(words).copied().map(OsString::from);
            let line = parse_as(with_variable(), words).expect("right flags");
            let Some(Command::Health(health)) = line.command else { panic!("{line:?} is not health") };
            let asks_by_tls = health.tls.tls_ca.is_some() || health.tls.tls_cert.is_some();
            assert_eq!(asks_by_tls, by_tls, "{health:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let wrong: &[(&[&str], &str)] = &[
            (&["--database-url", "postgresql+psycopg://me:secret@db/x"], "--database-url"),
            (&["serve", "--nats-url", "nat://me:secret@host"], "--nats-url"),
            (&["migrate", "--database-url=mysql://me:secret@db/x"], "--database-url"),
            (&["rebuild", "--database-url", "secret"], "--database-url"),
            (&["serve", "--peer", "a=http://me:secret@a:1"], "--peer"),
            (&["postgres://me:secret@db/x"], "subcommand"),
            (&["serve", "--listen", "postgres:///x?host=db&password=secret"], "--listen"),
            (&["serve", "--listen", "host=db password=secret"], "--listen"),
            (&["serve", "--peer", "order=postgres:///x?host=db&password=secret"], "--peer"),
            (&["serve", "--peer", "postgres:///x?host=db&password=secret"], "--peer"),
            (&["serve", "--peer", "order=host=db password = secret"], "--peer"),
            (&["serve", "--peer", "order=Server=db;Password=secret"], "--peer"),
            (&["PGPASSWORD=secret"], "subcommand"),
            (&["postgres:///x?password=secret"], "subcommand"),
            (&["migrate", "postgres://me:secret@db/x"], "argument"),
            (&["migrate", "-postgres://me:secret@db/x"], "argument"),
            (&["migrate", "--postgres://me:secret@db/x"], "argument"),
            (&["serve", "--listen", "0.0.0.0:1", "me:secret@db"], "argument"),
            (&["migrate", "host=db user=me password=secret"], "argument"),
            (&["host=db user=me password=secret"], "subcommand"),
            (&["serve", "--listen", "host=db password = secret"], "--listen"),
            (&["serve", "--listen", "mysql://db/x?secret"], "--listen"),
            (&["serve", "--database-ur=postgres://me:secret@db/x"], "argument"),
        ];
        for (words, says) in wrong {
            let error = typed(words).expect_err("wrong");
            let line = one_line(&error);
            assert!(
                !line.contains("secret") && !format!("{error:?}").contains("secret"),
                "{words:?}: {line}\n{error:?}"
            );
            let right = !says.ends_with("-url") || line.contains("://");
            assert!(line.contains(says) && right, "what would be right is told: {line}");
        }
    }

    #[test]
    fn help_tells_every_flag_with_its_variable_and_default() {
        let help = typed(&["--help"]).expect_err("help").to_string();
        let says =
            ["--listen", "LISTEN", "0.0.0.0:50099", "sqlite:data/tea.db", "--drain-timeout", "20s", "MAX_DEADLINE"];
        for words in says {
            assert!(help.contains(words), "{words} is not in\n{help}");
        }
    }

    #[test]
    fn every_flag_has_a_variable_of_its_name() {
        let mut line = command_line::<Tea>();
        line.build();
        let serve = line.find_subcommand("serve").expect("serve");
        let flags: Vec<_> = serve.get_arguments().filter(|flag| flag.get_action().takes_values()).collect();
        assert!(flags.len() > 20, "{} flags", flags.len());
        for flag in flags {
            let name = flag.get_long().expect("a flag").to_uppercase().replace('-', "_");
            assert_eq!(flag.get_env().and_then(|variable| variable.to_str()), Some(&*name));
        }
    }
}
