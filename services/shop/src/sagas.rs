//! The sagas of services that run: a list, one's timeline, a definition's graph.

use proto::saga::v1::{
    DescribeSagaRequest, DescribeSagaResponse, GetSagaRequest, ListParkedSagasRequest, ListParkedSagasResponse,
    ListSagasRequest, ListSagasResponse, ParkedSaga, Reason, Saga, SagaPhase, StepKind, StepState,
};
use tonic::{Code, Response, Status};

use crate::{
    clients::{Orders, sentence},
    config,
    screen::{Screen, Tone},
    timeline::Timeline,
};

/// How many sagas a list shows: the newest.
const LISTED: i32 = 20;

/// Lists sagas: on a terminal until Ctrl-C, else once.
///
/// # Errors
/// When the order service isn't there, or goes away.
pub async fn list(asked: &config::Watch, screen: Screen) -> anyhow::Result<()> {
    let orders = Orders::connect(&asked.at.address).await?;
    screen.live(|| table(orders.clone(), screen)).await
}

/// The newest, and below them what is parked where it is asked for, however old it is.
async fn table(mut orders: Orders, screen: Screen) -> anyhow::Result<Vec<String>> {
    let newest = ListSagasRequest { page_size: LISTED, ..ListSagasRequest::default() };
    let listed = orders.sagas.list_sagas(newest).await.map(Response::into_inner);
    let asked = ListParkedSagasRequest { page_size: LISTED, ..ListParkedSagasRequest::default() };
    let parked = orders.parked.list_parked_sagas(asked).await.map(Response::into_inner);
    told(listed, parked, screen)
}

/// What is known, and of the rest why it isn't: where the surfaces are apart a process has one of the two, and one all of whose places are
/// taken has some left for operators, who alone ask for what is parked.
fn told(
    listed: Result<ListSagasResponse, Status>,
    parked: Result<ListParkedSagasResponse, Status>,
    screen: Screen,
) -> anyhow::Result<Vec<String>> {
    let is_elsewhere = |status: &Status| status.code() == Code::Unimplemented;
    if let (Err(listed), Err(parked)) = (&listed, &parked) {
        return Err(sentence(if is_elsewhere(listed) { parked } else { listed }));
    }
    let instead = |status: &Status, elsewhere: &str| {
        let why = if is_elsewhere(status) { elsewhere.to_owned() } else { sentence(status).to_string() };
        vec![screen.paint(Tone::Faint, why)]
    };
    let mut lines = listed.map_or_else(
        |status| {
            let why =
                "here only what is parked is known; where queries are answered, all are: ask there, by --order-address";
            instead(&status, why)
        },
        |listed| listed_lines(&listed, screen),
    );
    lines.extend(parked.map_or_else(
        |status| instead(&status, "what is parked is known where commands are served: ask there, by --order-address"),
        |parked| parked_lines(&parked, screen),
    ));
    Ok(lines)
}

fn listed_lines(listed: &ListSagasResponse, screen: Screen) -> Vec<String> {
    let head = format!("{:<38} {:<14} {:<12} {}", "saga", "type", "phase", "steps");
    let mut lines = vec![screen.paint(Tone::Title, head)];
    if listed.sagas.is_empty() {
        lines.push("none yet: ./just order places one".to_owned());
    }
    lines.extend(listed.sagas.iter().map(|saga| row(saga, screen)));
    lines
}

fn parked_lines(listed: &ListParkedSagasResponse, screen: Screen) -> Vec<String> {
    let mut lines: Vec<String> = listed.parked_sagas.iter().map(|parked| parked_line(parked, screen)).collect();
    if !listed.next_page_token.is_empty() {
        lines.push("and more: saga.v1.ParkedSagaQueryService/ListParkedSagas has them all".to_owned());
    }
    lines
}

fn parked_line(parked: &ParkedSaga, screen: Screen) -> String {
    let since = parked.park_time.map(|time| format!(" since {time}")).unwrap_or_default();
    let head = screen.paint(Tone::Bad, format!("PARKED {}{since}", parked.saga_id));
    format!("{head}: {}", screen.paint(Tone::Plain, &parked.error))
}

fn row(saga: &Saga, screen: Screen) -> String {
    let (phase, tone) = phase(saga.phase());
    let steps: Vec<String> = saga.steps.iter().map(|step| format!("{} {}", mark(step.state()), step.name)).collect();
    let paused = if saga.paused { " paused" } else { "" };
    let waits = match saga.waits_for_saga_id.as_str() {
        "" => String::new(),
        holder => format!("  waits for {holder}"),
    };
    format!(
        "{:<38} {:<14} {} {}{waits}",
        saga.saga_id,
        saga.r#type,
        screen.paint(tone, format!("{:<12}", format!("{phase}{paused}"))),
        steps.join("  ")
    )
}

fn phase(phase: SagaPhase) -> (&'static str, Tone) {
    match phase {
        SagaPhase::Scheduled => ("scheduled", Tone::Faint),
        SagaPhase::Forward => ("forward", Tone::Plain),
        SagaPhase::Compensating => ("compensating", Tone::Undo),
        SagaPhase::Stuck => ("STUCK", Tone::Bad),
        SagaPhase::Completed => ("completed", Tone::Good),
        SagaPhase::Compensated => ("compensated", Tone::Undo),
        SagaPhase::ForceClosed => ("force-closed", Tone::Bad),
        SagaPhase::Unspecified => ("?", Tone::Plain),
    }
}

/// A step's state, a sign each.
fn mark(state: StepState) -> char {
    match state {
        StepState::Unspecified => '·',
        StepState::Started => '…',
        StepState::Done => '✓',
        StepState::Rejected => '✗',
        StepState::Abandoned => '?',
        StepState::Compensating => '↩',
        StepState::Compensated => '⤺',
        StepState::Skipped => '»',
    }
}

/// Shows one saga's timeline and where it stands.
///
/// # Errors
/// When the order service isn't there, or knows no such saga.
pub async fn show(asked: config::ShowSaga, screen: Screen) -> anyhow::Result<()> {
    let mut orders = Orders::connect(&asked.at.address).await?;
    let answer = orders.sagas.get_saga(GetSagaRequest { saga_id: asked.saga_id }).await;
    let answer = answer.map_err(|status| sentence(&status))?.into_inner();
    let saga = answer.saga.unwrap_or_default();
    screen.line(row(&saga, screen))?;
    for line in Timeline::default().news(&saga, screen) {
        screen.line(line)?;
    }
    if let Some(parked) = answer.parked {
        screen.line(parked_line(&parked, screen))?;
    }
    for step in saga.steps.iter().filter(|step| !step.last_error.is_empty()) {
        screen.line(format!("{}: {}", step.name, screen.paint(Tone::Bad, &step.last_error)))?;
    }
    if let Some(reason) = saga.reason {
        screen.line(screen.paint(Tone::Plain, because(&reason)))?;
    }
    Ok(())
}

/// Why a saga turned back: for a step's refusal, or for what no step said, such as that it was cancelled.
fn because(reason: &Reason) -> String {
    let step = if reason.step.is_empty() { String::new() } else { format!("{}: ", reason.step) };
    format!("because of {step}{}: {}", reason.reason, reason.message)
}

/// Draws a definition as Mermaid.
///
/// # Errors
/// When the order service isn't there, or knows no such type.
pub async fn graph(asked: config::GraphSaga, screen: Screen) -> anyhow::Result<()> {
    let mut orders = Orders::connect(&asked.at.address).await?;
    let newest = DescribeSagaRequest { r#type: asked.saga_type, ..DescribeSagaRequest::default() };
    let answer = orders.sagas.describe_saga(newest).await;
    screen.line(mermaid(&answer.map_err(|status| sentence(&status))?.into_inner()).trim_end())?;
    Ok(())
}

fn mermaid(definition: &DescribeSagaResponse) -> String {
    let mut text = String::from("flowchart LR\n");
    for step in &definition.steps {
        let label = format!("{}<br/>{}", step.name, step.participant);
        let shape = match step.kind() {
            StepKind::Pivot => format!("[[\"{label}: pivot\"]]"),
            StepKind::Check => format!("{{\"{label}\"}}"),
            StepKind::Retriable => format!("([\"{label}\"])"),
            StepKind::Compensatable | StepKind::Unspecified => format!("[\"{label}\"]"),
        };
        text.push_str(&format!("  {}{shape}\n", step.name));
        for before in &step.after {
            text.push_str(&format!("  {before} --> {}\n", step.name));
        }
        if let Some((_, undo)) = step.compensation.rsplit_once('/') {
            text.push_str(&format!("  {} -. {undo} .-> {0}\n", step.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use libs::{
        cli::{DatabaseUrl, Program as _, Serve, Surface},
        journal::{Cause, Decided, Entry, Journal, Loaded, Row},
        saga::TABLES,
        service::App,
    };
    use proto::saga::v1::{Step, StepDefinition};

    use super::*;
    use crate::shop::{Shop, Site};

    #[test]
    fn a_saga_is_a_line_with_a_sign_for_each_step() {
        let step =
            |name: &str, state: StepState| Step { name: name.to_owned(), state: state.into(), ..Step::default() };
        let steps = vec![step("reserve", StepState::Compensated), step("charge", StepState::Rejected)];
        let mut saga = Saga { saga_id: "s-1".to_owned(), r#type: "place-order".to_owned(), steps, ..Saga::default() };
        saga.set_phase(SagaPhase::Compensated);
        let row = row(&saga, Screen::plain());
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>().join(" "),
            "s-1 place-order compensated ⤺ reserve ✗ charge"
        );
    }

    #[test]
    fn what_a_saga_turned_back_for_names_the_step_where_one_refused() {
        let because = |step: &str, reason: &str, message: &str| {
            let [step, reason, message] = [step, reason, message].map(str::to_owned);
            because(&Reason { step, reason, message, code: 0 })
        };
        let refused = because("charge", "INSUFFICIENT_FUNDS", "1 is too little");
        assert_eq!(refused, "because of charge: INSUFFICIENT_FUNDS: 1 is too little");
        assert_eq!(because("", "CANCELLED", "changed my mind"), "because of CANCELLED: changed my mind");
    }

    /// A database of orders with a saga whose record can't be read: whoever takes it up parks it.
    async fn one_is_parked(folder: &Path) -> anyhow::Result<DatabaseUrl> {
        let path = folder.join("order.db");
        let journal = Journal::open(&*path, TABLES).await?;
        let row = Row { table: TABLES[0], values: vec!["s-1".into(), true.into(), vec![0xff].into()] };
        let decide = Box::new(move |_: &Loaded<'_>| Decided { rows: vec![row], ..Decided::default() });
        journal
            .submit(Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 100 })
            .await?;
        journal.close();
        journal.ended().await?;
        Ok(DatabaseUrl::Sqlite(path))
    }

    #[tokio::test]
    async fn where_the_surfaces_are_apart_each_lists_what_it_knows_and_says_who_knows_the_rest() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let database = one_is_parked(folder.path()).await?;
        for (surface, shown, left_out) in [
            (
                Surface::Command,
                "PARKED s-1 since ",
                "here only what is parked is known; where queries are answered, all are: ask there",
            ),
            (Surface::Query, "none yet", "what is parked is known where commands are served: ask there"),
        ] {
            let flags = Serve { surface, ..Serve::new("127.0.0.1:0".parse()?, database.clone()) };
            let mut app = App::bind(order::Service::NAME, &flags).await?;
            order::Service::assemble(&mut app, &flags).await.map_err(anyhow::Error::from_boxed)?;
            let address = format!("http://{}", app.local_addr());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let serves = tokio::spawn(app.run_until(async { drop(stopped.await) }));
            let lines = table(Orders::connect(&address).await?, Screen::plain()).await?;
            assert!(lines.iter().any(|line| line.starts_with(shown)), "{surface:?}: {lines:?}");
            assert!(lines.iter().any(|line| line.starts_with(left_out)), "{surface:?}: {lines:?}");
            drop(stop);
            serves.await??;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_service_without_sagas_lists_none_and_is_not_taken_for_one_whose_surfaces_are_apart() -> anyhow::Result<()>
    {
        let folder = tempfile::tempdir()?;
        let shop = Shop::start(&Site::anywhere(folder.path())).await?;
        let elsewhere = shop.uri("payment")?;
        let asked = async { Ok(table(Orders::connect(&elsewhere).await?, Screen::plain()).await) };
        let refused = shop.during(asked).await?.expect_err("payment has no sagas").to_string();
        assert!(refused.contains("is not served here"), "{refused}");
        Ok(())
    }

    #[test]
    fn what_is_parked_is_a_line_with_its_reason() {
        let parked = |id: &str| ParkedSaga {
            saga_id: id.to_owned(),
            error: "its definition is not here".to_owned(),
            park_time: Some(libs::time::timestamp(1_700_000_000_000_000)),
            orphan: false,
        };
        let listed = ListParkedSagasResponse { parked_sagas: vec![parked("s-1")], next_page_token: String::new() };
        let line = "PARKED s-1 since 2023-11-14T22:13:20Z: its definition is not here";
        assert_eq!(parked_lines(&listed, Screen::plain()), [line]);
        let more = ListParkedSagasResponse { next_page_token: "next".to_owned(), ..listed };
        assert!(parked_lines(&more, Screen::plain())[1].contains("ListParkedSagas"));
    }

    #[test]
    fn what_is_parked_is_shown_also_where_the_list_is_refused() -> anyhow::Result<()> {
        let parked = ParkedSaga { saga_id: "s-1".to_owned(), ..ParkedSaga::default() };
        let parked = ListParkedSagasResponse { parked_sagas: vec![parked], ..ListParkedSagasResponse::default() };
        let full = || Status::resource_exhausted("all places are taken");
        let lines = told(Err(full()), Ok(parked), Screen::plain())?.join("\n");
        assert!(lines.contains("all places are taken") && lines.contains("PARKED s-1"), "{lines}");
        let refused = told(Err(full()), Err(Status::unimplemented("not here")), Screen::plain()).expect_err("neither");
        assert!(refused.to_string().contains("all places are taken"), "{refused}");
        Ok(())
    }

    #[test]
    fn a_definition_is_drawn_with_its_pivot_and_its_ways_back() {
        let step = |name: &str, kind: StepKind, after: &[&str], compensation: &str| StepDefinition {
            name: name.to_owned(),
            kind: kind.into(),
            after: after.iter().map(ToString::to_string).collect(),
            participant: "payment".to_owned(),
            compensation: compensation.to_owned(),
            ..StepDefinition::default()
        };
        let steps = vec![
            step("charge", StepKind::Compensatable, &[], "/payment.v1.PaymentCommandService/RefundCharge"),
            step("ship", StepKind::Pivot, &["charge"], ""),
        ];
        let drawn = mermaid(&DescribeSagaResponse { steps, ..DescribeSagaResponse::default() });
        let expected = "flowchart LR\n  charge[\"charge<br/>payment\"]\n  charge -. RefundCharge .-> charge\n  \
                        ship[[\"ship<br/>payment: pivot\"]]\n  charge --> ship\n";
        assert_eq!(drawn, expected);
    }
}
