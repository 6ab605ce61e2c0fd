//! The counters each worker keeps in the shared page: written by one thread, read by the guardian.
//! A new one is a row here; a name is part of the metrics' public face.

/// How a counter moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the engine lives.
    Total,
    /// Goes up and down.
    Gauge,
}

macro_rules! counters {
    ($($variant:ident $kind:ident $name:literal $help:literal;)*) => {
        /// One number of one worker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $help] $variant),* }

        impl Counter {
            /// Every counter, in the page's order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Name in metrics and JSON, without prefix and without `_total`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// One line of help.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),* }
            }

            /// How it moves.
            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }
        }
    };
}

counters! {
    Turns Total "worker_turns" "Turns of the worker's loop.";
    Accepted Total "connections_accepted" "Client connections accepted.";
    Connections Gauge "connections" "Connections now open, clients and upstreams.";
    ConnectionsRefused Total "connections_refused" "Connections closed at accept for want of room.";
    BuffersStarved Total "buffers_starved" "Receives parked because no buffer was free.";
    CqOverflows Total "cq_overflows" "Completion queue overflows seen.";
    HttpRequests Total "http_requests" "HTTP requests whose head was complete.";
    HttpReplies2xx Total "http_replies_2xx" "HTTP replies with status 2xx sent to clients.";
    HttpReplies3xx Total "http_replies_3xx" "HTTP replies with status 3xx sent to clients.";
    HttpReplies4xx Total "http_replies_4xx" "HTTP replies with status 4xx sent to clients.";
    HttpReplies5xx Total "http_replies_5xx" "HTTP replies with status 5xx sent to clients.";
    HttpRefused Total "http_refused" "HTTP requests refused by this node for a named reason.";
    HttpRetries Total "http_retries" "HTTP requests sent to a second upstream server.";
    UpstreamConnects Total "upstream_connects" "Connections opened to upstream servers.";
    UpstreamFailures Total "upstream_failures" "Upstream connects, writes or reads that failed.";
    CacheCommands Total "cache_commands" "memcached commands executed here.";
    CacheGets Total "cache_gets" "Keys asked for.";
    CacheHits Total "cache_hits" "Keys found.";
    CacheSets Total "cache_sets" "Values stored.";
    CacheEvictions Total "cache_evictions" "Items evicted before they expired.";
    CacheExpired Total "cache_expired" "Items reclaimed after they expired.";
    CacheItems Gauge "cache_items" "Items now stored.";
    CacheBytes Gauge "cache_bytes" "Bytes of keys and values now stored.";
    AnswersHeld Gauge "answers_held" "Answers now waiting for the peer's ack.";
    AnswersUnprotected Total "answers_unprotected" "Writes acknowledged alone, in MASTER_SOLO.";
    AnswersAlone Total "answers_alone" "Sends of memcached answers in MASTER_SOLO.";
    ForwardedOut Total "forwarded_out" "Commands forwarded to the master.";
    RecordsApplied Total "replication_records_applied" "Replication records applied.";
    ReplicationLagBytes Gauge "replication_lag_bytes" "Bytes of records not yet acknowledged.";
    LinkRefused Total "link_refused" "Peer streams refused: wrong key or cluster.";
}

/// Room for counters in the page; a page of another layout is refused by its version.
pub const COUNTERS_MAX: usize = 96;

const _: () = assert!(Counter::ALL.len() <= COUNTERS_MAX, "the page has no room for this counter");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.iter().all(|name| name.chars().all(plain)));
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
