//! Roles: each route is open to those that may and to nobody else, and at once.

use hyper::Method;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use windlass_director::api::{Problem, openapi_json};
use windlass_director::client::{Client, ClientError};
use windlass_director::model::Role;

use crate::rig::{self, OPERATOR, Rig};
use crate::{ordered, problem};

/// What each operation takes, written down a second time: who changes a rule changes it here too.
#[rustfmt::skip] // one line per operation, so that a missing one shows
const EXPECTED: &[(&str, Role)] = &[
    ("getHealth",                Role::Viewer),
    ("getStatus",                Role::Viewer),
    ("listStemcells",            Role::Viewer),
    ("listAuditEntries",         Role::Viewer),
    ("getMetrics",               Role::Viewer),
    ("getCa",                    Role::Viewer),
    ("rotateCa",                 Role::Admin),
    ("renewOperator",            Role::Viewer),
    ("backupDirector",           Role::Admin),
    ("getHold",                  Role::Viewer),
    ("adoptDifferences",         Role::Admin),
    ("listFreezes",              Role::Viewer),
    ("freezeClusters",           Role::Admin),
    ("thawClusters",             Role::Admin),
    ("listClusters",             Role::Viewer),
    ("createCluster",            Role::Operator),
    ("getCluster",               Role::Viewer),
    ("applyCluster",             Role::Operator),
    ("deleteCluster",            Role::Operator),
    ("createClusterCredentials", Role::Admin),
    ("upgradeAgents",            Role::Operator),
    ("restoreCluster",           Role::Admin),
    ("listBackups",              Role::Viewer),
    ("backUpCluster",            Role::Operator),
    ("getBackup",                Role::Viewer),
    ("deleteBackup",             Role::Admin),
    ("getBackupArchive",         Role::Admin),
    ("drillCluster",             Role::Admin),
    ("renewCertificates",        Role::Operator),
    ("rotateSecrets",            Role::Admin),
    ("listMachines",             Role::Viewer),
    ("getMachine",               Role::Viewer),
    ("getMachineEvidence",       Role::Operator),
    ("getMachineLogs",           Role::Operator),
    ("execOnMachine",            Role::Admin),
    ("openShell",                Role::Admin),
    ("runCommand",               Role::Admin),
    ("watchUsage",               Role::Operator),
    ("explainMachine",           Role::Viewer),
    ("listStoppedPools",         Role::Viewer),
    ("listKeptMachines",         Role::Viewer),
    ("deleteKeptMachine",        Role::Operator),
    ("holdMachine",              Role::Operator),
    ("releaseMachine",           Role::Operator),
    ("recreateMachine",          Role::Operator),
    ("listDisks",                Role::Viewer),
    ("deleteDisk",               Role::Operator),
    ("enrollMachine",            Role::Operator),
    ("listOverview",             Role::Viewer),
    ("listCampaigns",            Role::Viewer),
    ("createCampaign",           Role::Operator),
    ("getCampaign",              Role::Viewer),
    ("pauseCampaign",            Role::Operator),
    ("resumeCampaign",           Role::Operator),
    ("cancelCampaign",           Role::Operator),
    ("retryCampaign",            Role::Operator),
    ("listTasks",                Role::Viewer),
    ("getTask",                  Role::Viewer),
    ("followTask",               Role::Viewer),
    ("cancelTask",               Role::Operator),
    ("pauseTask",                Role::Operator),
    ("resumeTask",               Role::Operator),
    ("retryTask",                Role::Operator),
    ("listOperators",            Role::Viewer),
    ("addOperator",              Role::Admin),
    ("getOperator",              Role::Viewer),
    ("changeOperator",           Role::Admin),
    ("revokeOperator",           Role::Admin),
];

/// Every operation of the document, asked by every role, of things that do not exist.
pub(crate) async fn every_route() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let document: Value = serde_json::from_str(&openapi_json())?;
    let clients = [
        (Role::Viewer, rig.operator("vic", Role::Viewer).await?),
        (Role::Operator, rig.operator("oda", Role::Operator).await?),
        (Role::Admin, rig.operator("ada", Role::Admin).await?),
    ];
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let expected = EXPECTED.iter().find(|(operation, _)| *operation == id);
            let (_, needed) = expected.ok_or_else(|| format!("{id} is not in the table"))?;
            let path = path.replace("{name}", "nobody").replace("{id}", "t-1");
            let path = path.replace("{backup}", "20300131-120000-00000001");
            let method: Method = method.to_uppercase().parse()?;
            for (role, client) in &clients {
                let status = status(client, method.clone(), &path).await?;
                assert_eq!(
                    status == 403,
                    role < needed,
                    "{role} asks {method} {path}: {status}"
                );
                asked += 1;
            }
        }
    }
    assert_eq!(asked, EXPECTED.len() * 3);
    let log = rig.client.get("/v1/audit?actor=vic&limit=1000").await?;
    let refused = log["items"].as_array().unwrap().iter();
    let refused = refused.filter(|e| e["action"] == "request.failed" && e["outcome"] == "403");
    let least = |needed: Role| EXPECTED.iter().filter(|(_, role)| *role >= needed).count();
    assert_eq!(refused.count(), least(Role::Operator), "{log:#}");
    rig.end().await;
    Ok(())
}

/// The status of an answer; its body is not read.
async fn status(client: &Client, method: Method, path: &str) -> Result<u16, Failed> {
    match client.lines(method, path, Some(String::new()), &[]).await {
        Ok(_) => Ok(200),
        Err(ClientError::Problem(Problem { status, .. })) => Ok(status),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn at_once() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let oda = rig.operator("oda", Role::Operator).await?;
    let spec = || json!({"name": "demo", "pools": {}}).to_string();
    oda.post("/v1/clusters?dry_run=true", spec()).await?;
    let change = |role: &str| json!({ "role": role }).to_string();
    rig.client
        .patch("/v1/operators/oda", change("viewer"))
        .await?;
    let refused = problem(oda.post("/v1/clusters?dry_run=true", spec()).await);
    assert_eq!((refused.status, refused.code.as_str()), (403, "forbidden"));
    assert!(refused.message.contains("operator"), "{}", refused.message);
    rig.client.delete("/v1/operators/oda").await?;
    let out = problem(oda.get("/v1/clusters").await);
    assert_eq!((out.status, out.code.as_str()), (401, "unauthenticated"));
    // A name is given out once, and neither comes back nor changes.
    let again = rig.operator("oda", Role::Viewer).await;
    assert!(format!("{:?}", again.err()).contains("was revoked"));
    let changed = problem(rig.client.patch("/v1/operators/oda", change("admin")).await);
    assert_eq!(changed.status, 409);
    // Somebody has to be left who can undo it.
    let me = format!("/v1/operators/{OPERATOR}");
    let last = problem(rig.client.delete(&me).await);
    assert_eq!((last.status, last.code.as_str()), (409, "conflict"));
    let last = problem(rig.client.patch(&me, change("operator")).await);
    assert_eq!(last.status, 409);
    let log = rig.client.get("/v1/audit?subject=operator/oda").await?;
    let actions: Vec<&str> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        ["operator.revoke", "operator.set-role", "operator.add"]
    );
    rig.end().await;
    Ok(())
}

pub(crate) async fn revoked_in_a_stream() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let (id, _) = ordered(&rig.client).await?;
    let vic = rig.operator("vic", Role::Viewer).await?;
    let events = format!("/v1/tasks/{id}/events");
    let mut stream = vic.lines(Method::GET, &events, None, &[]).await?;
    rig::event(&mut stream).await?.unwrap();
    let mut other = rig.client.lines(Method::GET, &events, None, &[]).await?;
    rig::event(&mut other).await?.unwrap();
    rig.client.delete("/v1/operators/vic").await?;
    let broken = async {
        while rig::event(&mut stream).await?.is_some() {}
        Ok::<_, ClientError>(())
    };
    let broken = tokio::time::timeout(std::time::Duration::from_secs(10), broken).await?;
    assert!(
        matches!(broken, Err(ClientError::Unreachable { .. })),
        "the stream breaks off and does not just end: {broken:?}"
    );
    // The other one's stream goes on to the task's end.
    rig.client
        .post(&format!("/v1/tasks/{id}/cancel"), String::new())
        .await?;
    while rig::event(&mut other).await?.is_some() {}
    rig.end().await;
    Ok(())
}

pub(crate) async fn adopted() -> Result<(), Failed> {
    let rig = Rig::start_older().await;
    let operators = rig.client.get("/v1/operators").await?;
    let found = operators["items"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{operators:#}");
    assert_eq!(found[0]["name"], OPERATOR);
    assert_eq!(found[0]["role"], "admin");
    let log = rig.client.get("/v1/audit?action=operator.").await?;
    assert_eq!(log["items"][0]["action"], "operator.adopt");
    assert_eq!(log["items"][0]["actor"], "director");
    rig.end().await;
    Ok(())
}

/// The way to a cluster's API says why there is none, in Kubernetes' words.
pub(crate) async fn no_api_server() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let vic = rig.operator("vic", Role::Viewer).await?;
    let pods = "/v1/clusters/demo/kubernetes/api/v1/pods";
    let absent = problem_text(vic.get(pods).await);
    assert!(absent.contains("404"), "{absent}");
    ordered(&rig.client).await?;
    let away = problem_text(vic.get(pods).await);
    assert!(away.contains("503"), "{away}");
    let as_another = [("impersonate-group", "system:masters")];
    let refused = rig.client.lines(Method::GET, pods, None, &as_another).await;
    let refused = problem_text(refused.map(|_| Value::Null));
    assert!(refused.contains("403"), "{refused}");
    let log = rig
        .client
        .get("/v1/audit?action=cluster.kubernetes&actor=vic")
        .await?;
    let minted = log["items"][0]["detail"].as_str().unwrap();
    assert!(minted.contains("windlass:cluster-viewers"), "{log:#}");
    rig.end().await;
    Ok(())
}

/// What a client makes of an answer that is Kubernetes' and no problem of this API.
fn problem_text(result: Result<Value, ClientError>) -> String {
    match result {
        Err(error @ ClientError::Unexpected { .. }) => error.to_string(),
        other => panic!("an answer of another kind: {other:?}"),
    }
}
