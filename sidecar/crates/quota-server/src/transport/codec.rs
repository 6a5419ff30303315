//! Messages to bytes and back; a message that can't be read is the caller's error, with a reason.

use std::marker::PhantomData;

use bytes::Buf as _;
use quota_proto::wire::{FromWire, ToWire};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{refusal::Refusal, transport::status::status};

/// Protobuf, as `tonic_prost` does it, but with typed errors.
pub(super) struct Typed<Request, Response>(PhantomData<(Request, Response)>);

/// Reads messages of one type.
pub(super) struct Reader<Message>(PhantomData<Message>);

/// Writes messages of one type.
pub(super) struct Writer<Message>(PhantomData<Message>);

impl<Request, Response> Default for Typed<Request, Response> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Request, Response> Codec for Typed<Request, Response>
where
    Request: FromWire + Send + 'static,
    Response: ToWire + Send + 'static,
{
    type Encode = Response;
    type Decode = Request;
    type Encoder = Writer<Response>;
    type Decoder = Reader<Request>;

    fn encoder(&mut self) -> Self::Encoder {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Reader(PhantomData)
    }
}

impl<M: ToWire> Encoder for Writer<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .to_wire(buffer)
            .map_err(|_| status(Refusal::internal()))
    }
}

impl<M: FromWire> Decoder for Reader<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::from_wire(buffer.copy_to_bytes(buffer.remaining()))
            .map(Some)
            .map_err(|error| status(Refusal::undecodable(&error.to_string())))
    }
}
