//! Gates that look at something outside of the cluster.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers these, one a connection, the last one for ever.
async fn server(answers: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ok?x=1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut answers = answers.iter().peekable();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /ok?x=1 HTTP/1.1"));
            let answer = answers.peek().copied().unwrap();
            if answers.len() > 1 {
                answers.next();
            }
            let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    });
    url
}

async fn ask(url: String, timeout_seconds: u32, success_threshold: u32) -> Result<String, String> {
    let http = HttpGate {
        url,
        timeout_seconds,
        success_threshold,
    };
    let (events, _) = tokio::sync::broadcast::channel(8);
    let progress = ProgressSink {
        events,
        key: crate::model::StepKey("machine/demo-w-0/await-gates".into()),
    };
    let machine = MachineName::new("demo-w-0").unwrap();
    let gate = GateSpec {
        name: "shop".into(),
        check: GateCheck::Http(http.clone()),
    };
    let passed = polled("shop", &Http(&http), &progress).await;
    passed.map_err(|why| {
        let error = shut(&gate, &machine, &why);
        assert_eq!(error.class, ErrorClass::Operator);
        error.message
    })
}

#[tokio::test]
async fn a_gate_opens_after_so_many_answers_in_a_row() {
    let url = server(&["200 OK", "503 Not Yet", "200 OK"]).await;
    let done = ask(url, 60, 2).await.unwrap();
    assert_eq!(done, "gate shop is open after 4 looks");
}

#[tokio::test]
async fn a_gate_that_stays_shut_says_why() {
    let url = server(&["503 Not Yet"]).await;
    let message = ask(url.clone(), 1, 1).await.unwrap_err();
    for part in ["gate shop", "demo-w-0", "503", url.as_str()] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let nobody = ask("http://127.0.0.1:1/".into(), 1, 1).await.unwrap_err();
    assert!(nobody.contains("does not connect"), "{nobody}");
}
