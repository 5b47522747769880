//! The commands: what is wrong with the shape of each, and which rule decides it.

use libs::{
    cqrs::{Decision, State},
    money,
    refusal::{Refusal, Violations},
};
use proto::payment::v1::{
    ChargeCustomerRequest, ChargeCustomerResponse, DepositFundsRequest, DepositFundsResponse, RefundChargeRequest,
    RefundChargeResponse,
};

use crate::{
    domain::{account, charge},
    surface::PaymentDecider,
};

/// The payments' commands.
#[derive(Debug)]
pub struct Commands;

impl PaymentDecider for Commands {
    fn check_deposit_funds(&self, request: &DepositFundsRequest, violations: &mut Violations) {
        violations.id(&request.customer_id, "customer_id");
        money::check_positive(request.amount.as_ref(), "amount", violations);
    }

    fn deposit_funds(
        &self,
        state: &State<'_>,
        request: &DepositFundsRequest,
    ) -> Result<Decision<DepositFundsResponse>, Refusal> {
        account::deposit(state, request)
    }

    fn check_charge_customer(&self, request: &ChargeCustomerRequest, violations: &mut Violations) {
        violations.id(&request.charge_id, "charge_id");
        violations.id(&request.customer_id, "customer_id");
        money::check_positive(request.amount.as_ref(), "amount", violations);
    }

    fn charge_customer(
        &self,
        state: &State<'_>,
        request: &ChargeCustomerRequest,
    ) -> Result<Decision<ChargeCustomerResponse>, Refusal> {
        charge::charge(state, request)
    }

    fn check_refund_charge(&self, request: &RefundChargeRequest, violations: &mut Violations) {
        violations.id(&request.charge_id, "charge_id");
        violations.id(&request.customer_id, "customer_id");
    }

    fn refund_charge(
        &self,
        state: &State<'_>,
        request: &RefundChargeRequest,
    ) -> Result<Decision<RefundChargeResponse>, Refusal> {
        charge::refund(state, request)
    }
}
