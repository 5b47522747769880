//! A charge: money taken from one account, and given back whole or not at all.

use libs::{
    cqrs::{Aggregate, Decision, State},
    money::Amount,
    refusal::Refusal,
};
use proto::payment::v1::{
    AccountEvent, ChargeCustomerRequest, ChargeCustomerResponse, ChargeEvent, ChargeMade, ChargeRecord, ChargeRefunded,
    FundsCharged, FundsRefunded, RefundChargeRequest, RefundChargeResponse, account_event, charge_event::Event,
};

use super::Account;

/// The aggregate; its id is the caller's, an order's own.
#[derive(Debug)]
pub enum Charge {}

impl Aggregate for Charge {
    const KIND: &'static str = "charge";
    type State = ChargeRecord;
    type Event = ChargeEvent;

    fn evolve(state: &mut ChargeRecord, event: &ChargeEvent) {
        match &event.event {
            Some(Event::Made(made)) => {
                state.customer_id.clone_from(&made.customer_id);
                state.amount.clone_from(&made.amount);
            }
            Some(Event::Refunded(_)) => state.refunded = true,
            None => {}
        }
    }

    fn event_name(event: &ChargeEvent) -> &'static str {
        match event.event {
            Some(Event::Made(_)) => "ChargeMade",
            Some(Event::Refunded(_)) => "ChargeRefunded",
            None => "ChargeEvent",
        }
    }
}

/// Takes money from an account that has enough.
///
/// # Errors
/// CHARGE_EXISTS, UNKNOWN_ACCOUNT, CURRENCY_MISMATCH, INSUFFICIENT_FUNDS.
pub fn charge(state: &State<'_>, request: &ChargeCustomerRequest) -> Result<Decision<ChargeCustomerResponse>, Refusal> {
    let ChargeCustomerRequest { charge_id, customer_id, amount, .. } = request;
    if state.exists::<Charge>(charge_id) {
        let message = format!("charge {charge_id} was made before");
        return Err(Refusal::already_exists("CHARGE_EXISTS", message).with("charge_id", charge_id));
    }
    if !state.exists::<Account>(customer_id) {
        let message = format!("customer {customer_id} has no account");
        return Err(Refusal::not_found("UNKNOWN_ACCOUNT", message).with("customer_id", customer_id));
    }
    let (balance, wanted) =
        (Amount::stored(state.get::<Account>(customer_id)?.balance.as_ref())?, Amount::stored(amount.as_ref())?);
    if !balance.covers(wanted)? {
        let message = format!("customer {customer_id} has {balance}, the charge is {wanted}");
        return Err(Refusal::precondition("INSUFFICIENT_FUNDS", message)
            .with("customer_id", customer_id)
            .with("balance", balance.to_string())
            .with("amount", wanted.to_string()));
    }
    let made = ChargeMade { customer_id: customer_id.clone(), amount: amount.clone() };
    let charged = FundsCharged { amount: amount.clone(), charge_id: charge_id.clone() };
    let balance = Some(balance.minus(wanted)?.into());
    Ok(Decision::reply(ChargeCustomerResponse { charge_id: charge_id.clone(), balance })
        .event::<Charge>(charge_id, &ChargeEvent { event: Some(Event::Made(made)) })
        .event::<Account>(customer_id, &AccountEvent { event: Some(account_event::Event::Charged(charged)) }))
}

/// Gives a charge back, whole. Once it is back, asking again changes nothing.
///
/// # Errors
/// UNKNOWN_CHARGE, CHARGE_OF_ANOTHER.
pub fn refund(state: &State<'_>, request: &RefundChargeRequest) -> Result<Decision<RefundChargeResponse>, Refusal> {
    let RefundChargeRequest { charge_id, customer_id, .. } = request;
    if !state.exists::<Charge>(charge_id) {
        let message = format!("there is no charge {charge_id}");
        return Err(Refusal::not_found("UNKNOWN_CHARGE", message).with("charge_id", charge_id));
    }
    let charge = state.get::<Charge>(charge_id)?;
    if charge.customer_id != *customer_id {
        // Whose it is stays between payment and that customer.
        let message = format!("charge {charge_id} is not customer {customer_id}'s");
        return Err(Refusal::precondition("CHARGE_OF_ANOTHER", message).with("charge_id", charge_id));
    }
    let account = state.get::<Account>(customer_id)?;
    if charge.refunded {
        return Ok(Decision::reply(RefundChargeResponse { charge_id: charge_id.clone(), balance: account.balance }));
    }
    let balance = Amount::stored(account.balance.as_ref())?.plus(Amount::stored(charge.amount.as_ref())?)?;
    let refunded = FundsRefunded { amount: charge.amount, charge_id: charge_id.clone() };
    Ok(Decision::reply(RefundChargeResponse { charge_id: charge_id.clone(), balance: Some(balance.into()) })
        .event::<Charge>(charge_id, &ChargeEvent { event: Some(Event::Refunded(ChargeRefunded {})) })
        .event::<Account>(customer_id, &AccountEvent { event: Some(account_event::Event::Refunded(refunded)) }))
}

#[cfg(test)]
mod tests {
    use libs::cqrs::testing::{Given, given};
    use proto::google::r#type::Money;
    use tonic::Code;

    use super::{
        super::account::tests::{deposited, money},
        *,
    };

    /// Ada has 50 EUR, Bob has never been here.
    fn bank() -> Given {
        given().aggregate::<Charge>("c1").event::<Account>("ada", &deposited(50)).aggregate::<Account>("bob")
    }

    fn made(customer_id: &str, amount: Option<Money>) -> ChargeEvent {
        ChargeEvent { event: Some(Event::Made(ChargeMade { customer_id: customer_id.to_owned(), amount })) }
    }

    fn taken(amount: Option<Money>) -> AccountEvent {
        let charge_id = "c1".to_owned();
        AccountEvent { event: Some(account_event::Event::Charged(FundsCharged { amount, charge_id })) }
    }

    fn given_back(amount: Option<Money>) -> AccountEvent {
        let charge_id = "c1".to_owned();
        AccountEvent { event: Some(account_event::Event::Refunded(FundsRefunded { amount, charge_id })) }
    }

    fn refunded() -> ChargeEvent {
        ChargeEvent { event: Some(Event::Refunded(ChargeRefunded {})) }
    }

    /// The charge of 20 EUR was made.
    fn charged_bank() -> Given {
        bank().event::<Charge>("c1", &made("ada", money("EUR", 20))).event::<Account>("ada", &taken(money("EUR", 20)))
    }

    fn charging(
        world: &Given,
        customer_id: &str,
        amount: Option<Money>,
    ) -> Result<Decision<ChargeCustomerResponse>, Refusal> {
        let request = ChargeCustomerRequest {
            charge_id: "c1".to_owned(),
            customer_id: customer_id.to_owned(),
            amount,
            ..ChargeCustomerRequest::default()
        };
        world.when(|state| charge(state, &request))
    }

    fn refunding(world: &Given, customer_id: &str) -> Result<Decision<RefundChargeResponse>, Refusal> {
        let request = RefundChargeRequest {
            charge_id: "c1".to_owned(),
            customer_id: customer_id.to_owned(),
            ..RefundChargeRequest::default()
        };
        world.when(|state| refund(state, &request))
    }

    #[test]
    fn a_charge_takes_the_money_and_answers_what_is_left() {
        let decision = charging(&bank(), "ada", money("EUR", 20)).expect("she has 50");
        assert_eq!(decision.reply_ref().balance, money("EUR", 30));
        assert_eq!(decision.events::<Charge>(), [("c1".to_owned(), made("ada", money("EUR", 20)))]);
        assert_eq!(decision.events::<Account>(), [("ada".to_owned(), taken(money("EUR", 20)))]);
    }

    #[test]
    fn the_last_cent_can_be_charged_and_not_one_more() {
        charging(&bank(), "ada", money("EUR", 50)).expect("she has 50");
        let refusal = charging(&bank(), "ada", money("EUR", 51)).expect_err("she has 50");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "INSUFFICIENT_FUNDS"));
        let facts = ["balance", "amount"].map(|fact| refusal.metadata[fact].as_str());
        assert_eq!(facts, ["50.00 EUR", "51.00 EUR"]);
    }

    #[test]
    fn who_has_no_account_can_not_be_charged() {
        let refusal = charging(&bank(), "bob", money("EUR", 1)).expect_err("no account");
        assert_eq!((refusal.code, &*refusal.reason), (Code::NotFound, "UNKNOWN_ACCOUNT"));
    }

    #[test]
    fn an_account_is_charged_in_its_currency() {
        let refusal = charging(&bank(), "ada", money("USD", 1)).expect_err("euros");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "CURRENCY_MISMATCH"));
    }

    #[test]
    fn a_charge_is_made_once_even_after_its_refund() {
        let refunded = charged_bank().event::<Charge>("c1", &refunded());
        for world in [charged_bank(), refunded] {
            let refusal = charging(&world, "ada", money("EUR", 20)).expect_err("it was made");
            assert_eq!((refusal.code, &*refusal.reason), (Code::AlreadyExists, "CHARGE_EXISTS"));
        }
    }

    #[test]
    fn a_refund_gives_all_of_it_back() {
        let decision = refunding(&charged_bank(), "ada").expect("it was made");
        assert_eq!(decision.reply_ref().balance, money("EUR", 50));
        assert_eq!(decision.events::<Charge>(), [("c1".to_owned(), refunded())]);
        assert_eq!(decision.events::<Account>(), [("ada".to_owned(), given_back(money("EUR", 20)))]);
    }

    #[test]
    fn refunding_twice_changes_nothing() {
        let world =
            charged_bank().event::<Charge>("c1", &refunded()).event::<Account>("ada", &given_back(money("EUR", 20)));
        let decision = refunding(&world, "ada").expect("it is refunded");
        assert_eq!(decision.reply_ref().balance, money("EUR", 50));
        assert_eq!(decision.events::<Charge>(), []);
        assert_eq!(decision.events::<Account>(), []);
    }

    #[test]
    fn a_charge_is_refunded_to_who_was_charged() {
        let refusal = refunding(&bank(), "ada").expect_err("nothing was charged");
        assert_eq!((refusal.code, &*refusal.reason), (Code::NotFound, "UNKNOWN_CHARGE"));

        let refusal = refunding(&charged_bank(), "bob").expect_err("it was ada's");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "CHARGE_OF_ANOTHER"));
    }
}
