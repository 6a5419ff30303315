//! The transport on tonic.

use std::{io, sync::Arc, time::Duration};

use quota_proto::DESCRIPTORS;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
    time::interval,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    server::NamedService as _,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    service::Service,
    transport::{Listeners, Phase, Transport, limits, quota::QuotaRoutes},
};

/// How often health looks whether calls can be answered.
const HEALTH_INTERVAL: Duration = Duration::from_millis(50);

/// gRPC on tonic, on TCP and a Unix socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tonic;

impl Transport for Tonic {
    async fn serve(
        self,
        mut listeners: Listeners,
        service: Arc<Service>,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<()> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
        };
        let routes = Routes::new(QuotaRoutes::new(Arc::clone(&service)))
            .add_service(health)
            .add_service(reflection().build_v1().map_err(io::Error::other)?)
            .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
            .prepare();
        let mut servers = JoinSet::new();
        servers.spawn(report_health(reporter, service, phase.clone()));
        if let Some(tcp) = listeners.tcp.take() {
            let incoming = TcpIncoming::from(TcpListener::from_std(tcp)?).with_nodelay(Some(true));
            let server = builder().add_routes(routes.clone());
            servers.spawn(finished(
                server.serve_with_incoming_shutdown(incoming, stopped(phase.clone())),
            ));
        }
        if let Some(unix) = &listeners.unix {
            let incoming = UnixListenerStream::new(UnixListener::from_std(unix.try_clone()?)?);
            let server = builder().add_routes(routes);
            servers.spawn(finished(
                server.serve_with_incoming_shutdown(incoming, stopped(phase.clone())),
            ));
        }
        while let Some(ended) = servers.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// Sets every limit: what is left at the library's default is no limit in some versions.
fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(limits::CONCURRENT_STREAMS)
        .http2_max_local_error_reset_streams(Some(limits::LOCAL_RESETS))
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_ACCEPT_RESETS))
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

async fn finished(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
) -> io::Result<()> {
    server.await.map_err(io::Error::other)
}

async fn stopped(mut phase: watch::Receiver<Phase>) {
    // A sender that is gone means the same.
    let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
}

/// Keeps health current: SERVING from the ledger's first welcome until a drain begins.
async fn report_health(
    reporter: HealthReporter,
    service: Arc<Service>,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let mut told = None;
    let mut ticks = interval(HEALTH_INTERVAL);
    while *phase.borrow() != Phase::Stopped && phase.has_changed().is_ok() {
        let ready = service.ready();
        if told != Some(ready) {
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            reporter.set_service_status(QuotaRoutes::NAME, status).await;
            told = Some(ready);
        }
        ticks.tick().await;
    }
    Ok(())
}
