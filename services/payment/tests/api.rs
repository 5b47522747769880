//! Payment as its callers see it: the real server, a real client, nothing in between replaced.

mod support;

use libs::{
    rpc::verdict::{Op, Verdict},
    testing::{after, in_saga, refused, verdict, wrong_fields},
};
use proto::{
    google::r#type::Money,
    payment::v1::{
        Account, ChargeCustomerRequest, ChargeState, DepositFundsRequest, GetAccountRequest, GetChargeRequest,
        ListChargesRequest, RefundChargeRequest,
    },
};
use support::TestApp;
use tonic::Code;

fn euros(units: i64) -> Option<Money> {
    Some(Money { currency_code: "EUR".to_owned(), units, nanos: 0 })
}

fn deposit(customer: &str, units: i64) -> DepositFundsRequest {
    let (request_id, customer_id) = (format!("deposit-{customer}"), customer.to_owned());
    DepositFundsRequest { request_id, customer_id, amount: euros(units) }
}

fn charge(id: &str, customer: &str, units: i64) -> ChargeCustomerRequest {
    let (request_id, charge_id, customer_id) = (format!("charge-{id}"), id.to_owned(), customer.to_owned());
    ChargeCustomerRequest { request_id, charge_id, customer_id, amount: euros(units) }
}

fn refund(id: &str, customer: &str) -> RefundChargeRequest {
    let (request_id, charge_id, customer_id) = (format!("refund-{id}"), id.to_owned(), customer.to_owned());
    RefundChargeRequest { request_id, charge_id, customer_id }
}

fn account(customer: &str) -> GetAccountRequest {
    GetAccountRequest { customer_id: customer.to_owned() }
}

/// Deposited, left, charged: whole units.
fn sums(account: Option<Account>) -> [i64; 3] {
    let Account { deposited, balance, charged, .. } = account.expect("an account");
    [deposited, balance, charged].map(|money| money.expect("no sum is missing").units)
}

#[tokio::test]
async fn what_is_deposited_charged_and_refunded_adds_up_in_the_account() {
    let mut app = TestApp::start().await;
    let deposited = app.commands.deposit_funds(deposit("ada", 50)).await.unwrap();
    let seen = app.queries.get_account(after(&deposited, account("ada"))).await.unwrap().into_inner();
    assert_eq!(sums(seen.account), [50, 50, 0]);

    let charged = app.commands.charge_customer(charge("c1", "ada", 20)).await.unwrap();
    assert_eq!(charged.get_ref().balance, euros(30));
    let seen = app.queries.get_account(after(&charged, account("ada"))).await.unwrap().into_inner();
    assert_eq!(sums(seen.account), [50, 30, 20]);
    let get = GetChargeRequest { charge_id: "c1".to_owned() };
    let seen = app.queries.get_charge(get.clone()).await.unwrap().into_inner().charge.unwrap();
    assert_eq!((seen.state(), seen.amount, seen.customer_id.as_str()), (ChargeState::Charged, euros(20), "ada"));

    let refunded = app.commands.refund_charge(refund("c1", "ada")).await.unwrap();
    let seen = app.queries.get_account(after(&refunded, account("ada"))).await.unwrap().into_inner();
    assert_eq!(sums(seen.account), [50, 50, 0]);
    let seen = app.queries.get_charge(get).await.unwrap().into_inner().charge.unwrap();
    assert_eq!(seen.state(), ChargeState::Refunded);
}

#[tokio::test]
async fn what_can_not_be_charged_is_refused_with_its_reason() {
    let mut app = TestApp::start().await;
    app.commands.deposit_funds(deposit("ada", 50)).await.unwrap();
    for (request, code, reason) in [
        (charge("c1", "ada", 51), Code::FailedPrecondition, "INSUFFICIENT_FUNDS"),
        (charge("c2", "bob", 1), Code::NotFound, "UNKNOWN_ACCOUNT"),
    ] {
        assert_eq!(refused(app.commands.charge_customer(request).await), (code, reason.to_owned()));
    }
    let unknown = app.commands.refund_charge(refund("c1", "ada")).await;
    assert_eq!(refused(unknown), (Code::NotFound, "UNKNOWN_CHARGE".to_owned()));
}

#[tokio::test]
async fn what_is_malformed_is_told_field_by_field() {
    let mut app = TestApp::start().await;
    let worst = DepositFundsRequest { request_id: "x".repeat(129), ..DepositFundsRequest::default() };
    assert_eq!(wrong_fields(app.commands.deposit_funds(worst).await), ["customer_id", "amount", "request_id"]);
    let negative = ChargeCustomerRequest { amount: euros(-1), ..charge("", "ada", 1) };
    assert_eq!(wrong_fields(app.commands.charge_customer(negative).await), ["charge_id", "amount"]);
    assert_eq!(wrong_fields(app.commands.refund_charge(refund("", "a b")).await), ["charge_id", "customer_id"]);
    assert_eq!(wrong_fields(app.queries.get_account(account("")).await), ["customer_id"]);
}

#[tokio::test]
async fn charges_are_listed_by_customer() {
    let mut app = TestApp::start().await;
    app.commands.deposit_funds(deposit("ada", 50)).await.unwrap();
    app.commands.deposit_funds(deposit("bob", 50)).await.unwrap();
    app.commands.charge_customer(charge("c1", "ada", 1)).await.unwrap();
    app.commands.charge_customer(charge("c2", "bob", 1)).await.unwrap();
    let last = app.commands.charge_customer(charge("c3", "ada", 1)).await.unwrap();
    let mut list = ListChargesRequest { customer_id: "ada".to_owned(), page_size: 1, ..ListChargesRequest::default() };
    let mut ids = Vec::new();
    loop {
        let page = app.queries.list_charges(after(&last, list.clone())).await.unwrap().into_inner();
        ids.extend(page.charges.into_iter().map(|charge| charge.charge_id));
        list.page_token = page.next_page_token;
        if list.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, ["c1", "c3"]);
    let of_another = ListChargesRequest { page_token: "AAAA".to_owned(), ..ListChargesRequest::default() };
    assert_eq!(wrong_fields(app.queries.list_charges(of_another).await), ["page_token"]);
}

#[tokio::test]
async fn a_saga_s_charge_is_taken_once() {
    let mut app = TestApp::start().await;
    app.commands.deposit_funds(deposit("ada", 50)).await.unwrap();
    for expected in [Verdict::Applied, Verdict::Replayed] {
        let taken = app.commands.charge_customer(in_saga(Op::Action, charge("c1", "ada", 20))).await;
        assert_eq!(verdict(&taken), Some(expected));
        let seen = app.queries.get_account(after(&taken.unwrap(), account("ada"))).await.unwrap().into_inner();
        assert_eq!(sums(seen.account), [50, 30, 20]);
    }
}

#[tokio::test]
async fn a_refusal_of_a_saga_s_charge_stays() {
    let mut app = TestApp::start().await;
    app.commands.deposit_funds(deposit("ada", 10)).await.unwrap();
    for _ in 0..2 {
        let poor = app.commands.charge_customer(in_saga(Op::Action, charge("c1", "ada", 20))).await;
        assert_eq!(verdict(&poor), Some(Verdict::Rejected));
        app.commands
            .deposit_funds(DepositFundsRequest { request_id: String::new(), ..deposit("ada", 50) })
            .await
            .unwrap();
    }
    let undone = app.commands.refund_charge(in_saga(Op::Compensation, refund("c1", "ada"))).await;
    assert_eq!(verdict(&undone), Some(Verdict::Applied), "there is nothing to undo, and that is fine");
    let seen = app.queries.get_account(after(&undone.unwrap(), account("ada"))).await.unwrap().into_inner();
    assert_eq!(sums(seen.account), [110, 110, 0]);
}
