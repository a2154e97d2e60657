//! The CA is rotated by the command line: who renews goes on, who does not is out, also in mid-stream.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use hyper::Method;
use libtest_mimic::Failed;
use windlass_director::client::{Client, ClientError, Context};
use windlass_director::model::Role;

use crate::ordered;
use crate::rig::{self, OPERATOR, Rig};

/// Runs `windlass` with a context.
async fn windlass(context: &Path, arguments: &[&str]) -> std::io::Result<Output> {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_windlass"))
        .arg("--context")
        .arg(context)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .await
}

fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    said
}

/// A copy of a context with the files it names.
fn copied(context: &Path) -> std::io::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::copy(context, dir.path().join("context.toml"))?;
    std::fs::create_dir(dir.path().join("operator"))?;
    for file in [
        "ca.crt".to_owned(),
        format!("{OPERATOR}.crt"),
        format!("{OPERATOR}.key"),
    ] {
        let from = context.parent().unwrap().join("operator").join(&file);
        std::fs::copy(from, dir.path().join("operator").join(file))?;
    }
    Ok(dir)
}

pub(crate) async fn rotated() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let context = rig.context();
    let old = copied(&context)?;
    let (task, _) = ordered(&rig.client).await?;
    // Vic watches with a certificate of the old CA.
    let vic = rig.operator("vic", Role::Viewer).await?;
    let events = format!("/v1/tasks/{task}/events");
    let mut stream = vic.lines(Method::GET, &events, None, &[]).await?;
    rig::event(&mut stream).await?.unwrap();
    // A machine that has never connected holds the rotation up: the overlap is over, as nobody who is
    // connected is behind, and the old CA is not dropped.
    let begun = done(&windlass(&context, &["director", "rotate-ca"]).await?);
    assert!(begun.contains("generation 1 to 2"), "{begun}");
    let status = done(&windlass(&context, &["director", "rotate-ca", "--status"]).await?);
    for wanted in ["demo-cp-0: it is not connected", "vic"] {
        assert!(status.contains(wanted), "{wanted} is not in: {status}");
    }
    assert!(
        !status.contains(OPERATOR) || status.contains("ordered by"),
        "{status}"
    );
    vic.get("/v1/tasks").await?;
    // Whose context was renewed is not named as behind, and uses the new certificate from now on.
    let renewed = std::fs::read(context.parent().unwrap().join("operator/tester.crt"))?;
    let before = std::fs::read(old.path().join("operator/tester.crt"))?;
    assert_ne!(renewed, before);
    done(&windlass(&context, &["context", "renew"]).await?);
    let nobody = windlass(
        &context,
        &["director", "rotate-ca", "--abandon", "no-such-0"],
    )
    .await?;
    let why = String::from_utf8_lossy(&nobody.stderr);
    assert!(
        !nobody.status.success() && why.contains("no-such-0"),
        "{nobody:?}"
    );
    // Given up by name, it holds nothing up any more.
    let abandon = ["director", "rotate-ca", "--abandon", "demo-cp-0", "--wait"];
    let over = done(&windlass(&context, &abandon).await?);
    for wanted in ["generation 2", "demo-cp-0", "vic"] {
        assert!(over.contains(wanted), "{wanted} is not in: {over}");
    }
    // The stream of the old certificate breaks off, and its connection is good for nothing.
    let broken = async {
        while rig::event(&mut stream).await?.is_some() {}
        Ok::<_, ClientError>(())
    };
    let broken = tokio::time::timeout(Duration::from_secs(10), broken).await?;
    assert!(
        matches!(broken, Err(ClientError::Unreachable { .. })),
        "the stream breaks off and does not just end: {broken:?}"
    );
    assert!(vic.get("/v1/tasks").await.is_err(), "vic is out");
    let stale = Client::new(Context::load(&old.path().join("context.toml"))?);
    assert!(stale.get("/v1/tasks").await.is_err(), "the old copy is out");
    done(&windlass(&context, &["task", "cancel", &task]).await?);
    let log = done(&windlass(&context, &["--json", "audit", "--limit", "50"]).await?);
    for action in ["director.rotate-ca", "director.ca.drop"] {
        assert!(log.contains(action), "{action} is not in: {log}");
    }
    rig.end().await;
    Ok(())
}
