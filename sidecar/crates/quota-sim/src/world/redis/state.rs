//! What a trace says of Redis: each call with its reply and the state after it, and each fault.

use std::fmt::Write;

use quota_core::{FunctionCall, FunctionReply};

use super::{Redis, pool::Pool};
use crate::world::trace::{hex, list};

impl Redis {
    /// Writes a call that was run. No effect where nothing is traced.
    pub(super) fn trace_call(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
        reply: &FunctionReply,
    ) {
        if self.trace.is_none() {
            return;
        }
        let mut line = format!(
            "{{\"kind\":\"call\",\"server\":{server},\"function\":\"{}\",\"keys\":{},\"args\":{},\"redis_us\":{},\"reply\":{}",
            call.function,
            list(&call.keys),
            list(&call.arguments),
            self.wall_us(server, real_us),
            match reply {
                FunctionReply::Elements(elements) => list(elements),
                FunctionReply::Error(_) => "null".to_owned(),
            },
        );
        let data = &self.servers[server].data;
        if call.function.starts_with("bucket") {
            let marker = data.markers.get(&call.keys[0]);
            let bucket = call.keys.get(1).and_then(|key| data.buckets.get(key));
            let _ = write!(
                line,
                ",\"marker\":{}",
                marker.map_or("null".to_owned(), super::Marker::state)
            );
            let _ = write!(
                line,
                ",\"bucket\":{}",
                bucket.map_or("null".to_owned(), super::TokenBucket::state)
            );
        } else {
            let pool = data.pools.get(&call.keys[0]);
            let _ = write!(line, ",\"pool\":{}", pool.map_or("null".to_owned(), state));
        }
        line.push('}');
        self.trace.get_or_insert_default().push(line);
    }

    /// Writes what happened to the servers, with all pools that the master has after it.
    pub(super) fn trace_fault(&mut self, what: &str) {
        if self.trace.is_none() {
            return;
        }
        let master = &self.servers[self.master];
        let pools: Vec<String> = master
            .data
            .pools
            .iter()
            .map(|(key, pool)| format!("\"{key}\":{}", state(pool)))
            .collect();
        let line = format!(
            "{{\"kind\":\"fault\",\"what\":\"{what}\",\"master\":{},\"history\":{},\"pools\":{{{}}}}}",
            self.master,
            master.history,
            pools.join(",")
        );
        self.trace.get_or_insert_default().push(line);
    }
}

fn state(pool: &Pool) -> String {
    let holders: Vec<String> = pool
        .seats
        .iter()
        .map(|(holder, seat)| {
            format!(
                "\"{}\":\"{}:{}:{}:{}:{}:{}\"",
                hex(&holder.0),
                seat.seq,
                seat.granted,
                seat.returned,
                seat.give,
                seat.consumed,
                seat.over
            )
        })
        .collect();
    format!(
        "{{\"generation\":{},\"history\":{},\"total\":{},\"granted\":{},\"returned\":{},\"seq\":{},\"final\":{},\"closed\":{},\"wanted\":{},\"amount_version\":{},\"holders\":{{{}}}}}",
        pool.generation,
        pool.fence,
        pool.total,
        pool.granted,
        pool.returned,
        pool.seq,
        u8::from(pool.is_final),
        u8::from(pool.is_closed),
        pool.wanted,
        pool.version,
        holders.join(",")
    )
}
