//! The other end of the control socket.
//!
//! Comes in: a request. Decided: nothing; the service decides. Goes out: its answer, or why there is none.

use crate::protocol::{ANSWER_LIMIT, Answer, Problem, Reply, Request, read_line, write_line};
use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Asks a service. `body` follows the request line (the bundle of `apply`).
///
/// # Errors
/// The service's own [`Problem`], or one of this side when there is no service.
pub fn ask(socket: &Path, request: &Request, body: &[u8]) -> Result<Reply, Problem> {
    let stream = UnixStream::connect(socket).map_err(|error| {
        Problem::failed("no-service", format!("no service answers on {}: {error}", socket.display()))
            .help("start one with `lucos-hv run` or `lucos-hv attach`, and name its socket with --api")
    })?;
    let lost = |error: io::Error| Problem::failed("service-lost", format!("the service did not answer: {error}"));
    // A service that refuses early closes before it has taken the whole body: its answer still counts.
    let sent = write_line(&mut &stream, request).and_then(|()| (&stream).write_all(body));
    match read_line::<Answer>(&mut BufReader::new(&stream), ANSWER_LIMIT) {
        Ok(Answer::Ok(reply)) => Ok(reply),
        Ok(Answer::Error(problem)) => Err(problem),
        Err(error) => Err(lost(sent.err().unwrap_or(error))),
    }
}
