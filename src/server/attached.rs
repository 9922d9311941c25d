//! Which of a server's replicas are Perennials: whoever acknowledges for an archive is no replica that clients could read
//! from or that could become a master.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::info::Info;
use crate::proto::handshake::command;
use crate::proto::master::UNKNOWN_COMMAND;

/// How long one of them may take to answer.
const ASKED: Duration = Duration::from_secs(2);
/// So many are asked.
const ASKED_MAX: usize = 16;

/// How many of the replicas that INFO tells of say that they are Perennial, at the port that they announce. One that
/// cannot be reached from here counts as a replica.
pub(super) async fn perennials(info: &Info) -> u64 {
    let mut asked = JoinSet::new();
    for (host, port) in info.replicas().into_iter().take(ASKED_MAX) {
        asked.spawn(async move { timeout(ASKED, is_perennial(&host, port)).await });
    }
    let mut found = 0;
    while let Some(answered) = asked.join_next().await {
        found += u64::from(matches!(answered, Ok(Ok(true))));
    }
    found
}

/// INFO does no harm, and only we refuse it in these words. No password is sent: to whom it would go is not known.
async fn is_perennial(host: &str, port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((host, port)).await else {
        return false;
    };
    if stream.write_all(&command(&[b"INFO"])).await.is_err() {
        return false;
    }
    let expected = format!("-ERR {UNKNOWN_COMMAND}");
    let mut answer = BytesMut::with_capacity(expected.len());
    while answer.len() < expected.len() {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) => return false,
            Ok(_)
                if !expected
                    .as_bytes()
                    .starts_with(&answer[..answer.len().min(expected.len())]) =>
            {
                return false;
            }
            Ok(_) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers whoever connects with this.
    async fn answering(answer: String) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn only_perennials_are_counted() {
        let ours = answering(format!("-ERR {UNKNOWN_COMMAND}\r\n")).await;
        let password = answering("-NOAUTH Authentication required.\r\n".into()).await;
        let server = answering("$30\r\n# Server\r\nredis_version:7.0.15\r\n".into()).await;
        let lines = [ours, password, server, 1].into_iter().enumerate();
        let text: String = lines
            .map(|(at, port)| {
                format!("slave{at}:ip=127.0.0.1,port={port},state=online,offset=1,lag=0\r\n")
            })
            .collect();
        assert_eq!(perennials(&Info::parse(&text)).await, 1);
        assert_eq!(perennials(&Info::parse("")).await, 0);
    }
}
