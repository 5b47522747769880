//! The surface in front of the engines that run in this process: the order service's own.

use std::{future::Future, net::SocketAddr};

use proto::order::v1::{
    CancelOrderRequest, CancelOrderResponse, PlaceOrderRequest, PlaceOrderResponse,
    order_command_service_server::{OrderCommandService, OrderCommandServiceServer},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::order::{Ended, Wanted};

/// An engine that takes orders to their end.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Starts the order's saga and waits for its end.
    fn place(&self, wanted: Wanted) -> impl Future<Output = anyhow::Result<Ended>> + Send;
}

struct Surface<E>(E);

#[tonic::async_trait]
impl<E: Engine> OrderCommandService for Surface<E> {
    async fn place_order(&self, request: Request<PlaceOrderRequest>) -> Result<Response<PlaceOrderResponse>, Status> {
        let told = |error: anyhow::Error| Status::internal(format!("{error:#}"));
        let wanted = Wanted::from_request(request.into_inner()).map_err(told)?;
        let ended = self.0.place(wanted.clone()).await.map_err(told)?;
        Ok(Response::new(PlaceOrderResponse { order: Some(wanted.into_order(ended)) }))
    }

    async fn cancel_order(&self, _: Request<CancelOrderRequest>) -> Result<Response<CancelOrderResponse>, Status> {
        Err(Status::unimplemented("not part of the benchmark"))
    }
}

/// Serves until this program is dismissed.
pub(crate) async fn serve(listen: SocketAddr, engine: impl Engine) -> anyhow::Result<()> {
    let surface = OrderCommandServiceServer::new(Surface(engine));
    let incoming = TcpIncoming::bind(listen)?.with_nodelay(Some(true));
    println!("ready");
    Server::builder().add_service(surface).serve_with_incoming_shutdown(incoming, crate::dismissed()).await?;
    Ok(())
}
