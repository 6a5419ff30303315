//! A plain gRPC client of `QuotaService`.

use prost::Message;
use quota_proto::quota::{
    CheckMode, CheckQuotaRequest, CheckQuotaResponse, Cost, Quantity, ReleaseReservationRequest,
    ReleaseReservationResponse, SettleReservationRequest, SettleReservationResponse,
    StreamQuotaRequest, StreamQuotaResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorInfo, StatusExt as _};

#[derive(Clone)]
pub struct Client(pub Grpc<Channel>);

impl Client {
    pub async fn tcp(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    pub async fn unix(path: &std::path::Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    pub async fn call<Req, Res>(&self, method: &str, message: Req) -> Result<Res, Status>
    where
        Req: Message + Default + Clone + 'static,
        Res: Message + Default + 'static,
    {
        self.request(method, Request::new(message)).await
    }

    pub async fn request<Req, Res>(
        &self,
        method: &str,
        request: Request<Req>,
    ) -> Result<Res, Status>
    where
        Req: Message + Default + Clone + 'static,
        Res: Message + Default + 'static,
    {
        let mut grpc = self.0.clone();
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = if method.starts_with('/') {
            method.to_owned()
        } else {
            format!("/tollkeeper.quota.v1.QuotaService/{method}")
        };
        let codec = ProstCodec::<Req, Res>::default();
        grpc.unary(request, path.parse().unwrap(), codec)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Opens a stream of checks; up to 2,000 wait to be sent.
    pub async fn stream(
        &self,
    ) -> (
        mpsc::Sender<StreamQuotaRequest>,
        tonic::Streaming<StreamQuotaResponse>,
    ) {
        let (sender, receiver) = mpsc::channel(2_000);
        let mut grpc = self.0.clone();
        grpc.ready().await.unwrap();
        let path = "/tollkeeper.quota.v1.QuotaService/StreamQuota"
            .parse()
            .unwrap();
        let codec = ProstCodec::<StreamQuotaRequest, StreamQuotaResponse>::default();
        let answers = grpc
            .streaming(Request::new(ReceiverStream::new(receiver)), path, codec)
            .await
            .unwrap();
        (sender, answers.into_inner())
    }

    pub async fn check(&self, request: CheckQuotaRequest) -> Result<CheckQuotaResponse, Status> {
        self.call("CheckQuota", request).await
    }

    pub async fn settle(
        &self,
        token: &str,
        units: i64,
    ) -> Result<SettleReservationResponse, Status> {
        let quantities = vec![Quantity {
            meter: "tokens".into(),
            units,
        }];
        let request = SettleReservationRequest {
            token: token.into(),
            quantities,
            ..Default::default()
        };
        self.call("SettleReservation", request).await
    }

    pub async fn release(&self, token: &str) -> Result<ReleaseReservationResponse, Status> {
        self.call(
            "ReleaseReservation",
            ReleaseReservationRequest {
                token: token.into(),
            },
        )
        .await
    }

    pub async fn reserve(&self, id: &str, units: i64) -> Result<CheckQuotaResponse, Status> {
        self.check(CheckQuotaRequest {
            request_id: id.into(),
            mode: CheckMode::Reserve.into(),
            ..consume(units)
        })
        .await
    }
}

/// A check of the tenant `acme` for so many tokens.
pub fn consume(units: i64) -> CheckQuotaRequest {
    CheckQuotaRequest {
        tenant: "acme".into(),
        costs: vec![Cost {
            meter: "tokens".into(),
            units,
        }],
        ..Default::default()
    }
}

/// The `ErrorInfo` of a status; panics where there is none.
pub fn error_info(status: &Status) -> ErrorInfo {
    status
        .get_error_details()
        .error_info()
        .cloned()
        .unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"))
}

/// The bytes of any message, unparsed.
#[derive(Clone, Default, Debug)]
pub struct Raw(Vec<u8>);

impl Raw {
    pub fn contains(&self, text: &str) -> bool {
        self.0
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

impl Message for Raw {
    fn encode_raw(&self, buffer: &mut impl prost::bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl prost::bytes::Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        let mut field = Vec::new();
        if wire_type == prost::encoding::WireType::LengthDelimited {
            prost::encoding::bytes::merge(wire_type, &mut field, buffer, context)?;
        } else {
            prost::encoding::skip_field(wire_type, 1, buffer, context)?;
        }
        self.0.extend(field);
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
