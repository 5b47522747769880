//! A way to a service on which calls go wrong as they are told to: lost, doubled, delayed, turned away, cut off. It speaks HTTP/2 and
//! knows sagas by their metadata, so that one operation of one saga meets one fault and its neighbours on the connection none.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Request, Response, StatusCode, request::Parts};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It never arrives; the caller sees its stream reset.
    LoseRequest,
    /// It takes effect; the caller sees its stream reset.
    LoseReply,
    /// It takes effect, and is never answered.
    Silence,
    /// It arrives twice at the same time; the last answer goes back.
    Double,
    /// The connection is reset before it arrives, with everything else that is on it.
    CutBefore,
    /// The connection is reset after it took effect, with everything else that is on it.
    CutAfter,
    /// A proxy answers in the service's place, in HTTP and not in gRPC.
    Http(u16),
    /// It is kept, and arrives when it is [let go](Proxy::let_go).
    Hold,
}

/// So many calls of one operation of one saga meet a fault.
#[derive(Debug)]
struct Rule {
    saga: String,
    method: &'static str,
    fault: Fault,
    met: u32,
    most: u32,
}

/// A call as it came.
#[derive(Debug)]
struct Call {
    parts: Parts,
    body: Bytes,
}

/// What a service answered to a saga's call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answered {
    /// The saga.
    pub saga: String,
    /// The method's name, such as `ReserveStock`.
    pub method: String,
    /// The verdict; empty where there was none.
    pub verdict: String,
}

#[derive(Debug)]
struct Shared {
    service: String,
    rules: Mutex<Vec<Rule>>,
    held: Mutex<Vec<Call>>,
    answered: Mutex<Vec<Answered>>,
    /// Told when a call meets a fault.
    faulty: Notify,
}

/// A way to one service.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A way to the service at this address, host and port, on which nothing goes wrong yet.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn before(service: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            service,
            rules: Mutex::default(),
            held: Mutex::default(),
            answered: Mutex::default(),
            faulty: Notify::new(),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&accepting);
                tokio::spawn(async move {
                    // What goes wrong with a connection its ends find out.
                    let _ = connection(near, &shared).await;
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Has the next so many calls of a method by a saga meet a fault.
    pub fn plan(&self, saga: &str, method: &'static str, fault: Fault, most: u32) {
        self.shared.rules.lock().push(Rule { saga: saga.to_owned(), method, fault, met: 0, most });
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.shared.rules.lock().clear();
    }

    /// Waits until each fault that was planned has been met at least once.
    pub async fn met(&self) {
        loop {
            let told = self.shared.faulty.notified();
            if self.shared.rules.lock().iter().all(|rule| rule.met > 0) {
                return;
            }
            told.await;
        }
    }

    /// What the service answered to sagas so far, lost answers included.
    #[must_use]
    pub fn answered(&self) -> Vec<Answered> {
        self.shared.answered.lock().clone()
    }

    /// Delivers what is held, and says what the service answered.
    ///
    /// # Errors
    /// When the service can't be reached.
    pub async fn let_go(&self) -> anyhow::Result<Vec<Answered>> {
        let held = std::mem::take(&mut *self.shared.held.lock());
        let mut answers = Vec::with_capacity(held.len());
        for call in held {
            let far = self.shared.reach().await?;
            answers.push(self.shared.delivered(&far, &call).await?.answered);
        }
        Ok(answers)
    }
}

/// An answer that was read to its end.
struct Whole {
    response: Response<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
    answered: Answered,
}

impl Shared {
    /// The fault that a call meets.
    fn fault(&self, parts: &Parts) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let (saga, method) = (saga(parts), method(parts));
        let rule = rules.iter_mut().find(|rule| rule.saga == saga && rule.method == method && rule.met < rule.most)?;
        rule.met += 1;
        self.faulty.notify_waiters();
        Some(rule.fault)
    }

    async fn reach(&self) -> anyhow::Result<SendRequest<Bytes>> {
        let far = TcpStream::connect(&self.service).await?;
        let (far, connection) = h2::client::handshake(far).await?;
        tokio::spawn(connection);
        Ok(far)
    }

    /// Delivers a call, and reads the answer to its end: what it led to is durable then.
    async fn delivered(&self, far: &SendRequest<Bytes>, call: &Call) -> anyhow::Result<Whole> {
        let (parts, mut incoming) = send(far, call).await?.await?.into_parts();
        let (body, trailers) = whole(&mut incoming).await?;
        let verdict =
            |map: &HeaderMap| map.get("saga-verdict").and_then(|verdict| verdict.to_str().ok()).map(str::to_owned);
        let verdict = verdict(&parts.headers).or_else(|| verdict(trailers.as_ref()?)).unwrap_or_default();
        let answered = Answered { saga: saga(&call.parts).to_owned(), method: method(&call.parts).to_owned(), verdict };
        self.answered.lock().push(answered.clone());
        Ok(Whole { response: Response::from_parts(parts, ()), body, trailers, answered })
    }
}

fn saga(parts: &Parts) -> &str {
    parts.headers.get("saga-id").and_then(|id| id.to_str().ok()).unwrap_or_default()
}

fn method(parts: &Parts) -> &str {
    parts.uri.path().rsplit('/').next().unwrap_or_default()
}

/// Serves a connection, each call on its own, until either end leaves or a fault cuts it.
async fn connection(near: TcpStream, shared: &Arc<Shared>) -> anyhow::Result<()> {
    // Whenever it ends, it ends by a reset.
    near.set_zero_linger()?;
    let mut near = h2::server::handshake(near).await?;
    let far = shared.reach().await?;
    let cut = Arc::new(Notify::new());
    loop {
        tokio::select! {
            accepted = near.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, respond) = accepted?;
                let (shared, far, cut) = (Arc::clone(shared), far.clone(), Arc::clone(&cut));
                tokio::spawn(async move {
                    // What goes wrong with a call its caller finds out.
                    let _ = call(request, respond, &far, &shared, &cut).await;
                });
            }
            () = cut.notified() => return Ok(()),
        }
    }
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    far: &SendRequest<Bytes>,
    shared: &Shared,
    cut: &Notify,
) -> anyhow::Result<()> {
    let (parts, mut body) = request.into_parts();
    let (body, _) = whole(&mut body).await?;
    let call = Call { parts, body };
    match shared.fault(&call.parts) {
        None if saga(&call.parts).is_empty() => stream(send(far, &call).await?.await?, &mut respond).await?,
        None => answer(shared.delivered(far, &call).await?, &mut respond)?,
        Some(Fault::LoseRequest) => respond.send_reset(Reason::CANCEL),
        Some(Fault::LoseReply) => {
            shared.delivered(far, &call).await?;
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
        Some(Fault::Silence) => {
            shared.delivered(far, &call).await?;
            given_up(&mut respond).await;
        }
        Some(Fault::Double) => {
            let (one, two) = tokio::join!(shared.delivered(far, &call), shared.delivered(far, &call));
            one?;
            answer(two?, &mut respond)?;
        }
        Some(Fault::CutBefore) => cut.notify_one(),
        Some(Fault::CutAfter) => {
            shared.delivered(far, &call).await?;
            cut.notify_one();
        }
        Some(Fault::Http(status)) => {
            let page = Response::builder().status(StatusCode::from_u16(status)?).header("content-type", "text/html");
            let page = page.body(())?;
            respond.send_response(page, false)?.send_data(Bytes::from_static(b"<h1>no</h1>"), true)?;
        }
        Some(Fault::Hold) => {
            shared.held.lock().push(call);
            given_up(&mut respond).await;
        }
    }
    Ok(())
}

/// Waits until the caller waits no more.
async fn given_up(respond: &mut SendResponse<Bytes>) {
    // However it leaves, it has left.
    let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
}

async fn send(far: &SendRequest<Bytes>, call: &Call) -> anyhow::Result<ResponseFuture> {
    let request = Request::from_parts(call.parts.clone(), ());
    let mut far = far.clone().ready().await?;
    let (answer, mut body) = far.send_request(request, false)?;
    body.send_data(call.body.clone(), true)?;
    Ok(answer)
}

/// Reads a body to its end.
async fn whole(body: &mut RecvStream) -> anyhow::Result<(Bytes, Option<HeaderMap>)> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes.into(), body.trailers().await?))
}

fn answer(whole: Whole, respond: &mut SendResponse<Bytes>) -> anyhow::Result<()> {
    let Whole { response, body, trailers, .. } = whole;
    let Some(trailers) = trailers else {
        // An error is headers and nothing else.
        respond.send_response(response, true)?;
        return Ok(());
    };
    let mut sending = respond.send_response(response, false)?;
    sending.send_data(body, false)?;
    sending.send_trailers(trailers).context("the caller has left")
}

/// Passes an answer on as it comes, however long it lasts.
async fn stream(response: Response<RecvStream>, respond: &mut SendResponse<Bytes>) -> anyhow::Result<()> {
    let (parts, mut body) = response.into_parts();
    let ended = body.is_end_stream();
    let mut sending = respond.send_response(Response::from_parts(parts, ()), ended)?;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        sending.send_data(chunk, false)?;
    }
    match body.trailers().await? {
        Some(trailers) => sending.send_trailers(trailers)?,
        None if !ended => sending.send_data(Bytes::new(), true)?,
        None => {}
    }
    Ok(())
}
