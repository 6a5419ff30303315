//! `StreamQuota`: checks in, answers out in whatever order they are ready.

use std::sync::Arc;

use quota_proto::quota::{
    CheckQuotaResponse, ErrorReason, StreamError, StreamQuotaRequest, StreamQuotaResponse,
    stream_quota_response::Result as Told,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt as _};

use crate::{
    handlers::check::{Check, begin},
    refusal::{Answer, Refusal},
    service::Service,
};

/// Checks of one stream that may wait at once; reading pauses beyond it.
const WAITING_MAX: usize = 1_024;

/// Answers one stream until it ends, its caller goes away, or it can't be read any more.
///
/// Checks that must wait do so beside each other, at most 1,024 of them; the stream is not read while its caller
/// doesn't take answers.
pub async fn stream_quota(
    service: Arc<Service>,
    mut requests: impl Stream<Item = Answer<StreamQuotaRequest>> + Unpin,
    answers: mpsc::Sender<Answer<StreamQuotaResponse>>,
) {
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = answers.closed() => return,
        };
        let request = match request {
            Some(Ok(request)) => request,
            None => return,
            Some(Err(refusal)) => {
                // The stream ends with its status; a caller that went away doesn't hear it.
                let _ = answers.send(service.counted(Err(refusal))).await;
                return;
            }
        };
        let tag = request.tag;
        let Some(check) = request.check else {
            if answers
                .send(Ok(response(tag, Err(no_check()))))
                .await
                .is_err()
            {
                return;
            }
            continue;
        };
        let sent = match begin(&service, check) {
            Check::Now(answer) => answers.send(Ok(response(tag, answer))).await.is_ok(),
            Check::Later(answer) => match Arc::clone(&places).acquire_owned().await {
                Ok(place) => {
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        tokio::select! {
                            answer = answer => drop(answers.send(Ok(response(tag, answer))).await),
                            () = answers.closed() => {}
                        }
                    });
                    true
                }
                Err(_) => false,
            },
        };
        if !sent {
            return;
        }
    }
}

fn response(tag: u64, answer: Answer<CheckQuotaResponse>) -> StreamQuotaResponse {
    let result = match answer {
        Ok(answer) => Told::Answer(answer),
        Err(refusal) => Told::Error(StreamError {
            code: refusal.code(),
            reason: refusal.reason_name().to_owned(),
            field: refusal.get("field").unwrap_or_default().to_owned(),
            message: refusal.message.into_owned(),
        }),
    };
    StreamQuotaResponse {
        tag,
        result: Some(result),
    }
}

fn no_check() -> Refusal {
    Refusal::new(
        ErrorReason::FieldRequired,
        "check is missing; send a check with every tag",
    )
    .with("field", "check")
    .with("bound", "a check")
    .with("remedy", "send a check with every tag")
}
