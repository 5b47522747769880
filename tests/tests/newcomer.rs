//! What the README has a newcomer do first, by the program that `./just` runs: the demo, `up` and the lines it prints, an order, its
//! saga.

use std::{
    env,
    fs::{self, File},
    net::Ipv4Addr,
    process::{ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::{port, program};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program has written. Escape codes are for terminals, and this is none, whatever kind is said to be there.
fn plain(output: Output) -> anyhow::Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    let text = String::from_utf8(output.stdout)?;
    ensure!(!text.contains('\u{1b}'), "there are escape codes in {text:?}");
    Ok(text)
}

fn shop(folder: &TempDir, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = program::command("shop", folder.path())?;
    command.args(words).env("TERM", "xterm-256color");
    Ok(command)
}

fn readme() -> anyhow::Result<String> {
    Ok(fs::read_to_string(program::repository().join("README.md"))?)
}

/// The words of a line, but for how much and how long.
fn words(line: &str) -> Vec<&str> {
    let is_number = |word: &str| word.trim_start_matches('+').parse::<f64>().is_ok();
    line.split_whitespace().filter(|word| !is_number(word) && !["µs", "ms", "s"].contains(word)).collect()
}

#[tokio::test]
async fn the_demo_ends_as_it_announces_and_as_the_readme_shows_it() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let shown = plain(program::output(shop(&folder, &["demo"])?).await?)?;
    let (orders, books) = shown.split_once("\nThe books, from the queries\n").context("no books")?;
    let orders: Vec<&str> = orders.split("\nOrder ").skip(1).collect();
    let ends = [
        ("it will be COMPLETED", "  COMPLETED for 29.25 EUR"),
        ("the order REJECTED", "  REJECTED by charge_customer, INSUFFICIENT_FUNDS: "),
        ("the order REJECTED", "  REJECTED by ship_order, UNDELIVERABLE_ADDRESS: "),
    ];
    assert_eq!(orders.len(), ends.len(), "{shown}");
    for (order, (announced, end)) in orders.iter().zip(ends) {
        let says = order.lines().find_map(|line| line.strip_prefix("  announced: ")).context("nothing is announced")?;
        let ended = order.trim_end().lines().last().context("no end")?;
        assert!(says.ends_with(announced) && ended.starts_with(end), "{order}");
    }
    assert!(books.lines().count() > 1 && books.lines().all(|line| line.starts_with("  ok ")), "{books}");

    let readme = readme()?;
    let sample = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).context("no sample")?;
    let mut lines = shown.lines().map(words);
    for line in sample.lines() {
        assert!(lines.any(|shown| shown == words(line)), "{line:?} of the README is not shown, or not there:\n{shown}");
    }
    Ok(())
}

/// The shop as `./just up` serves it.
struct Up {
    child: Child,
    host: Ipv4Addr,
    /// The lines to paste.
    lines: Vec<String>,
    // Open for as long as it serves: a program whose words nobody takes any more may end.
    _printing: Lines<BufReader<ChildStdout>>,
    // After the process, whose data is in it.
    folder: TempDir,
}

impl Up {
    /// Serves, and has read all that there is to paste.
    async fn start() -> anyhow::Result<Self> {
        let (folder, host) = (tempfile::tempdir()?, port::own_host());
        let log = folder.path().join("log");
        let mut command = shop(&folder, &["serve", "--host", &host.to_string()])?;
        let mut child = command.stdout(Stdio::piped()).stderr(File::create(&log)?).spawn()?;
        let mut printing = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut lines = Vec::new();
        let all = async {
            while let Some(line) = printing.next_line().await? {
                ensure!(!line.contains('\u{1b}'), "there are escape codes in {line:?}");
                if line.starts_with("grpcurl ") {
                    lines.push(line);
                } else if line.is_empty() && !lines.is_empty() {
                    return Ok(());
                }
            }
            bail!("it ends before its lines do: {}", fs::read_to_string(&log)?)
        };
        timeout(PATIENCE, all).await.context("its lines have no end")??;
        Ok(Self { child, host, lines, _printing: printing, folder })
    }

    /// Another run of the shop, which asks this one.
    fn asking(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = shop(&self.folder, words)?;
        command.args(["--order-address", &format!("http://{}:50054", self.host)]);
        Ok(command)
    }

    /// What another run of the shop says of it.
    async fn told(&self, words: &[&str]) -> anyhow::Result<String> {
        plain(program::output(self.asking(words)?).await?)
    }

    /// Ends as by Ctrl-C.
    async fn interrupted(mut self) -> anyhow::Result<()> {
        let ended = interrupt(&mut self.child).await?;
        ensure!(ended.success(), "{ended}: {}", fs::read_to_string(self.folder.path().join("log"))?);
        Ok(())
    }
}

/// Ends a program as by Ctrl-C.
async fn interrupt(child: &mut Child) -> anyhow::Result<ExitStatus> {
    program::signal(child, "INT").await?;
    Ok(timeout(PATIENCE, child.wait()).await.context("it does not end")??)
}

/// What a shell that has grpcurl on its PATH makes of a line.
async fn pasted(line: &str) -> anyhow::Result<Output> {
    let grpcurl = program::tool("grpcurl")?;
    let others = env::var_os("PATH").unwrap_or_default();
    let folders = grpcurl.parent().map(ToOwned::to_owned).into_iter().chain(env::split_paths(&others));
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("PATH", env::join_paths(folders)?);
    program::output(shell).await
}

/// Whether an answer shows whoever has pasted a line what its comment promises, when it is pasted again too.
fn is_promised(line: &str, answer: &Value) -> bool {
    let all = |list: &Value, holds: &dyn Fn(&Value) -> bool| list.as_array().is_some_and(|list| list.iter().all(holds));
    let completed = |order: &Value| order["orderId"] == "try-1" && order["state"] == "ORDER_STATE_COMPLETED";
    match line.rsplit('/').next().unwrap_or_default() {
        "AddStock" => answer["available"] == "100",
        "DepositFunds" => answer["balance"]["units"] == "500",
        "PlaceOrder" => completed(&answer["order"]) && answer["order"]["total"]["units"] == "25",
        "GetOrder" => {
            let (charge, shipment) = (&answer["charge"]["state"], &answer["shipped"]["state"]);
            completed(&answer["order"]) && charge == "CHARGE_STATE_CHARGED" && shipment == "SHIPMENT_STATE_SHIPPED"
        }
        "ListOrders" => answer["orders"].as_array().is_some_and(|orders| orders.len() == 1 && completed(&orders[0])),
        "GetSaga" => {
            let saga = &answer["saga"];
            saga["phase"] == "SAGA_PHASE_COMPLETED" && all(&saga["steps"], &|step| step["state"] == "STEP_STATE_DONE")
        }
        "ListBreakers" => all(&answer["breakers"], &|breaker| breaker["state"] == "CIRCUIT_STATE_CLOSED"),
        "GetStock" => answer["stock"]["added"] == "100" && answer["stock"]["shipped"] == "2",
        _ => panic!("say here what is promised by {line}"),
    }
}

/// Pastes a line. A view may be a moment behind the command before it; where it has shown its answer once, it is not.
async fn paste(line: &str, may_be_behind: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let output = pasted(line).await?;
        let answer = serde_json::from_slice(&output.stdout);
        if output.status.success() && answer.is_ok_and(|answer| is_promised(line, &answer)) {
            return Ok(());
        }
        ensure!(may_be_behind && begun.elapsed() < PATIENCE, "{line}: {output:?}");
    }
}

#[tokio::test]
async fn every_line_that_is_printed_can_be_pasted_and_pasted_again() -> anyhow::Result<()> {
    let up = Up::start().await?;
    let host = up.host.to_string();
    let written = readme()?;
    let written = written.lines().filter(|line| line.starts_with("grpcurl "));
    assert_eq!(up.lines, written.map(|line| line.replace("127.0.0.1", &host)).collect::<Vec<_>>());
    for again in [false, true] {
        for line in &up.lines {
            paste(line, !again && line.contains("QueryService/")).await?;
        }
    }
    // What was bought twice by one id was bought once.
    let look = r#"grpcurl -plaintext -d '{"sku":"tea"}'"#;
    paste(&format!("{look} {host}:50051 inventory.v1.InventoryQueryService/GetStock"), true).await?;
    up.interrupted().await
}

#[tokio::test]
async fn the_running_service_draws_the_saga_that_the_readme_shows() -> anyhow::Result<()> {
    let up = Up::start().await?;
    let drawn = up.told(&["saga", "graph", "place-order"]).await?;
    assert!(readme()?.contains(&format!("```mermaid\n{drawn}```\n")), "this is not in the README:\n{drawn}");
    Ok(())
}

/// The shelf and the customer's money, which `./just order` relies on.
async fn stocked() -> anyhow::Result<Up> {
    let up = Up::start().await?;
    for line in &up.lines[..2] {
        paste(line, false).await?;
    }
    Ok(up)
}

#[tokio::test]
async fn an_order_is_placed_listed_and_shown() -> anyhow::Result<()> {
    let up = stocked().await?;
    let placed = up.told(&["order"]).await?;
    let end = placed.lines().last().and_then(|line| line.strip_prefix("  order ")).context("no order")?;
    let (id, end) = end.split_once(' ').context("no end")?;
    assert_eq!(end, "COMPLETED for 12.50 EUR");

    let listed = up.told(&["sagas"]).await?;
    let row = listed.lines().find(|line| line.starts_with(id)).context("it is not listed")?.to_owned();
    let steps = "✓ reserve_inventory  ✓ charge_customer  ✓ ship_order  ✓ complete_order";
    assert!(row.contains(" place-order ") && row.contains(" completed ") && row.ends_with(steps), "{listed}");

    let shown = up.told(&["saga", "show", id]).await?;
    let lines: Vec<Vec<&str>> = shown.lines().map(words).collect();
    assert_eq!(lines.first(), Some(&words(&row)), "{shown}");
    assert_eq!(lines.last(), Some(&vec!["saga", "completed"]), "{shown}");
    Ok(())
}

#[tokio::test]
async fn an_order_is_watched_as_it_moves() -> anyhow::Result<()> {
    let up = stocked().await?;
    let mut watch = up.asking(&["watch"])?.stdout(Stdio::piped()).spawn()?;
    let mut shown = BufReader::new(watch.stdout.take().context("its output")?).lines();
    let mut next = async || timeout(PATIENCE, shown.next_line()).await.context("nothing is shown")??.context("it ends");
    assert_eq!(next().await?, "watching; Ctrl-C ends");
    let placed = up.told(&["order"]).await?;
    let id = placed.lines().last().and_then(|line| line.split_whitespace().nth(1)).context("no order")?.to_owned();
    // What the one who has placed it is shown, its heading and its end aside.
    let moves: Vec<&str> = placed.lines().filter(|line| line.trim_start().starts_with('+')).collect();
    assert!(moves.len() > 4, "{placed}");
    for expected in moves {
        assert_eq!(next().await?, format!("{id}  {expected}"));
    }
    assert_eq!(next().await?, format!("{id}  Completed"));
    assert!(interrupt(&mut watch).await?.success());
    Ok(())
}

#[tokio::test]
async fn the_circuits_of_an_order_are_listed() -> anyhow::Result<()> {
    let up = stocked().await?;
    up.told(&["order"]).await?;
    let inventory = format!("http://{}:50051", up.host);
    let listed = up.told(&["breakers", "--inventory-address", &inventory]).await?;
    let mut lines = listed.lines();
    let column = lines.next().and_then(|head| head.find("    calls")).context("no head")?;
    let rows: Vec<&str> = lines.collect();
    for peer in ["inventory", "payment", "shipping"] {
        let of_it = |row: &&&str| row.split_whitespace().take(3).eq(["order", peer, "closed"]);
        let row = rows.iter().find(of_it).with_context(|| format!("no circuit to {peer}:\n{listed}"))?;
        // One call of the order's.
        assert_eq!(row[column..column + "    calls".len()].trim(), "1", "{listed}");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_shop_says_in_a_line_what_to_do_by_its_own_flags() -> anyhow::Result<()> {
    let up = Up::start().await?;
    let (here, data) = (up.host.to_string(), up.folder.path().join("data").display().to_string());
    let elsewhere = port::own_host().to_string();
    for (words, what_to_do) in [
        (["--host", &here, "--data-dir", "another"], "another process listens on"),
        (["--host", &elsewhere, "--data-dir", &data], "another process has"),
    ] {
        let mut second = shop(&up.folder, &["serve"])?;
        let output = program::output({
            second.args(words);
            second
        })
        .await?;
        let said = String::from_utf8(output.stderr)?;
        let said = said.lines().rfind(|line| line.starts_with("error: ")).context("no error")?;
        assert_eq!(output.status.code(), Some(1), "{said}");
        let (_, flag) = said.split_once("or give another ").context("no advice")?;
        assert!(said.contains(what_to_do) && words.contains(&flag), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_words_are_told_in_a_line() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut loud, mut wrong) = (shop(&folder, &["serve"])?, shop(&folder, &["serve", "--prot", "1"])?);
    loud.env("RUST_LOG", "loud");
    for command in [&mut loud, &mut wrong] {
        command.args(["--host", &port::own_host().to_string()]);
    }
    // A word too few, of which the page of help would be many lines.
    let short = shop(&folder, &["saga"])?;
    for (command, what) in [(wrong, "--prot"), (loud, "RUST_LOG"), (short, "show, graph")] {
        let output = program::output(command).await?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1 && said.contains(what), "{said}");
    }
    Ok(())
}

/// The lines of the pages' `sh` blocks, each behind its page's name.
fn shown_commands() -> anyhow::Result<Vec<(String, String)>> {
    let root = program::repository();
    let docs = fs::read_dir(root.join("docs"))?.map(|page| Ok(page?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    let mut commands = Vec::new();
    for page in docs.into_iter().chain(["README.md", "ARCHITECTURE.md"].map(|page| root.join(page))) {
        let (name, text) = (page.display().to_string(), fs::read_to_string(&page)?);
        let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        commands.extend(blocks.flat_map(str::lines).map(|line| (name.clone(), line.to_owned())));
    }
    Ok(commands)
}

/// Whether a shell's variable is named without braces right before a colon.
fn names_before_a_colon(line: &str) -> bool {
    line.split('$').skip(1).any(|rest| {
        let behind = rest.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric() || letter == '_');
        behind.len() < rest.len() && behind.starts_with(':')
    })
}

/// Who pastes into zsh, as on a Mac, has no comments behind a command: each word is one of its own. And `$name:l` is that name in small letters.
#[test]
fn what_is_shown_to_be_pasted_is_the_same_to_every_shell() -> anyhow::Result<()> {
    let commands = shown_commands()?;
    assert!(commands.len() > 20, "these are not all: {commands:?}");
    let differs = |line: &str| {
        let told = line.split_once(" #").is_some_and(|(command, _)| !command.trim().is_empty());
        told || names_before_a_colon(line)
    };
    let differ: Vec<_> = commands.iter().filter(|(_, line)| differs(line)).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    Ok(())
}
