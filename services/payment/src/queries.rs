//! The queries: how each is answered from the views.

use libs::{
    cqrs::{Column, PageOrder, PageQuery, ReadSide},
    refusal::{Refusal, Violations},
};
use proto::payment::v1::{
    GetAccountRequest, GetAccountResponse, GetChargeRequest, GetChargeResponse, ListChargesRequest, ListChargesResponse,
};

use crate::{
    projections::{accounts::ACCOUNTS, charges::CHARGES},
    surface::PaymentQueries,
};

/// The payments' queries.
#[derive(Debug)]
pub struct Queries;

impl PaymentQueries for Queries {
    async fn get_account(&self, read: &ReadSide, request: GetAccountRequest) -> Result<GetAccountResponse, Refusal> {
        let id = request.customer_id;
        let mut violations = Violations::default();
        violations.id(&id, "customer_id");
        violations.refuse()?;
        let account = read.document(&ACCOUNTS, &id).await?;
        let unknown =
            || Refusal::not_found("UNKNOWN_ACCOUNT", format!("customer {id} has no account")).with("customer_id", &id);
        Ok(GetAccountResponse { account: Some(account.ok_or_else(unknown)?) })
    }

    async fn get_charge(&self, read: &ReadSide, request: GetChargeRequest) -> Result<GetChargeResponse, Refusal> {
        let id = request.charge_id;
        let mut violations = Violations::default();
        violations.id(&id, "charge_id");
        violations.refuse()?;
        let charge = read.document(&CHARGES, &id).await?;
        let unknown =
            || Refusal::not_found("UNKNOWN_CHARGE", format!("there is no charge {id}")).with("charge_id", &id);
        Ok(GetChargeResponse { charge: Some(charge.ok_or_else(unknown)?) })
    }

    async fn list_charges(&self, read: &ReadSide, request: ListChargesRequest) -> Result<ListChargesResponse, Refusal> {
        let ListChargesRequest { customer_id, page_size, page_token } = request;
        let mut filter = Vec::new();
        if !customer_id.is_empty() {
            let mut violations = Violations::default();
            violations.id(&customer_id, "customer_id");
            violations.refuse()?;
            filter.push(("customer", customer_id.into()));
        }
        let order = PageOrder::Ascending(Column::Text("id"));
        let page = read.page(&CHARGES, PageQuery { page_size, page_token: &page_token, filter, order }).await?;
        Ok(ListChargesResponse { charges: page.items, next_page_token: page.next_page_token })
    }
}
