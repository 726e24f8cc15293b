//! The control socket: `leno ps`, `logs` and `stop` ask, a running mesh answers. A request is one line
//! of JSON, an answer any number of lines until the end.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use super::logs::{Logs, is_wanted};
use super::overview::Overview;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub(crate) enum Request {
    /// One line: an [`Overview`].
    Ps,
    /// The lines of output as they are printed.
    Logs { pod: Option<String>, follow: bool, tail: usize },
    /// Nothing; the connection ends with the mesh.
    Stop,
}

/// What the cluster must answer.
#[derive(Debug)]
pub(crate) enum Question {
    Overview(oneshot::Sender<Overview>),
    Stop,
}

/// Serves the socket until the cluster is gone.
pub(crate) fn serve(path: &Path, logs: Arc<Logs>, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (logs, questions) = (logs.clone(), questions.clone());
            tokio::spawn(async move {
                // A client that goes away is no error.
                let _ = answer(stream, &logs, &questions).await;
            });
        }
    });
    Ok(())
}

async fn answer(stream: UnixStream, logs: &Logs, questions: &mpsc::Sender<Question>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut text = String::new();
    BufReader::new(reader).read_line(&mut text).await?;
    let Ok(request) = serde_json::from_str::<Request>(&text) else {
        return writer.write_all(b"{\"error\":\"the request is not understood\"}\n").await;
    };
    match request {
        Request::Ps => {
            let (sender, receiver) = oneshot::channel();
            let _ = questions.send(Question::Overview(sender)).await;
            let overview = receiver.await.map_err(io::Error::other)?;
            writer.write_all((serde_json::to_string(&overview)? + "\n").as_bytes()).await
        }
        Request::Logs { pod, follow, tail } => {
            let (lines, mut more) = logs.read(pod.as_deref(), tail);
            for line in lines {
                writer.write_all(format!("[{}] {}\n", line.source, line.text).as_bytes()).await?;
            }
            if !follow {
                return Ok(());
            }
            loop {
                match more.recv().await {
                    Ok(line) if is_wanted(&line, pod.as_deref()) => {
                        writer.write_all(format!("[{}] {}\n", line.source, line.text).as_bytes()).await?;
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(lost)) => {
                        writer.write_all(format!("... {lost} lines left out\n").as_bytes()).await?;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                }
            }
        }
        Request::Stop => {
            let _ = questions.send(Question::Stop).await;
            std::future::pending().await // the end of this process ends the connection
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn requests_are_lines_of_json() {
        let request = Request::Logs { pod: Some("web".into()), follow: true, tail: 10 };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"verb":"logs","pod":"web","follow":true,"tail":10}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}
