//! `QuotaService` over tonic: from a path to its handler.
//!
//! Written by hand instead of using the generated server, because that one decodes with untyped errors and boxes every
//! call twice.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quota_proto::{
    quota::{StreamQuotaRequest, StreamQuotaResponse},
    wire::{FromWire, ToWire},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Body as HttpBody, BoxFuture, Service as Tower, StdError, http},
    server::{Grpc, NamedService},
};

use crate::{
    handlers,
    refusal::{Answer, Refusal},
    service::Service,
    transport::{
        codec::Typed,
        limits,
        status::{refusal_of, status, typed_response},
    },
};

/// Answers of one stream that may wait for the peer to take them.
const ANSWERS_WAITING: usize = 256;
const SERVICE: &str = "tollkeeper.quota.v1.QuotaService";

/// Routes calls of `QuotaService`.
#[derive(Clone)]
pub(super) struct QuotaRoutes {
    service: Arc<Service>,
}

impl QuotaRoutes {
    pub(super) const fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

impl NamedService for QuotaRoutes {
    const NAME: &'static str = SERVICE;
}

impl<B> Tower<http::Request<B>> for QuotaRoutes
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = Arc::clone(&self.service);
        Box::pin(async move {
            let response = route(service, request).await;
            Ok(typed_response(response).unwrap_or_else(Status::into_http))
        })
    }
}

async fn route<B>(service: Arc<Service>, request: http::Request<B>) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    macro_rules! unary {
        ($handler:path $(, $extra:expr)?) => {
            unary(request, move |message: Request<_>| {
                let service = Arc::clone(&service);
                async move { answered($handler(&service, message.into_inner() $(, $extra)?).await) }
            })
            .await
        };
    }
    let path = request.uri().path();
    match path
        .strip_prefix('/')
        .and_then(|path| path.strip_prefix(SERVICE))
        .unwrap_or_default()
    {
        "/CheckQuota" => unary!(handlers::check_quota),
        "/StreamQuota" => stream(service, request).await,
        "/SettleReservation" => unary!(handlers::settle_reservation),
        "/ReleaseReservation" => unary!(handlers::release_reservation),
        "/RecordUsage" => {
            let deadline = deadline(&request);
            unary!(handlers::record_usage, deadline)
        }
        "/GetQuota" => unary!(handlers::get_quota),
        "/ExplainQuota" => unary!(handlers::explain_quota),
        "/LeaseQuota" => unary!(handlers::lease_quota),
        _ => status(Refusal::not_implemented("this method")).into_http(),
    }
}

fn answered<T>(answer: Answer<T>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(status)
}

/// A handler as the library calls it.
struct Call<F>(F);

impl<F, M, T, Answered> Tower<Request<M>> for Call<F>
where
    F: FnMut(Request<M>) -> Answered,
    Answered: Future<Output = Result<T, Status>>,
{
    type Response = T;
    type Error = Status;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<M>) -> Answered {
        (self.0)(request)
    }
}

async fn unary<B, M, T, Answered>(
    request: http::Request<B>,
    handler: impl FnMut(Request<M>) -> Answered + Send,
) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    M: FromWire + Send + 'static,
    T: ToWire + Send + 'static,
    Answered: Future<Output = Result<Response<T>, Status>> + Send,
{
    let mut grpc = Grpc::new(Typed::<M, T>::default())
        .apply_max_message_size_config(Some(limits::MESSAGE_BYTES), None);
    grpc.unary(Call(handler), request).await
}

async fn stream<B>(service: Arc<Service>, request: http::Request<B>) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let handler = move |requests: Request<Streaming<StreamQuotaRequest>>| {
        let (answers, told) = mpsc::channel(ANSWERS_WAITING);
        let requests = Box::pin(readable(requests.into_inner()));
        tokio::spawn(handlers::stream_quota(
            Arc::clone(&service),
            requests,
            answers,
        ));
        let told = ReceiverStream::new(told)
            .map(|answer: Answer<StreamQuotaResponse>| answer.map_err(status));
        std::future::ready(Ok::<_, Status>(Response::new(told)))
    };
    let mut grpc = Grpc::new(Typed::<StreamQuotaRequest, StreamQuotaResponse>::default())
        .apply_max_message_size_config(Some(limits::MESSAGE_BYTES), None);
    grpc.streaming(Call(handler), request).await
}

/// Requests until the stream ends or breaks; a peer that went away is an end, not an error.
fn readable(
    requests: Streaming<StreamQuotaRequest>,
) -> impl Stream<Item = Answer<StreamQuotaRequest>> {
    requests
        .map(|request| request.map_err(|found| refusal_of(&found)))
        .take_while(|request| !matches!(request, Err(None)))
        .map(|request| request.map_err(|refusal| refusal.unwrap_or_else(Refusal::internal)))
}

/// Reads how long the caller still waits (`grpc-timeout`: digits and one of H M S m u n).
fn deadline<B>(request: &http::Request<B>) -> Option<Duration> {
    let text = request.headers().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3_600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}
