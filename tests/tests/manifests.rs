//! What `tests/manifests.sh` refuses of pods that more may reach than somebody has said.

use std::{fs::File, process::Stdio};

use serde_json::{Value, json};
use tests::{manifests, program};
use tokio::process::Command;

/// The manifests of `k8s/overlays/local`.
fn sound() -> anyhow::Result<Vec<Value>> {
    manifests::rendered(&program::repository().join("k8s/overlays/local"))
}

/// What is found of manifests, changed so, a line each; nothing where they are sound.
async fn found(sound: &[Value], change: impl FnOnce(&mut Vec<Value>)) -> anyhow::Result<Vec<String>> {
    let mut documents = sound.to_vec();
    change(&mut documents);
    let folder = tempfile::tempdir()?;
    let changed = folder.path().join("changed.yaml");
    // A document of JSON is one of YAML.
    let text: Vec<_> = documents.iter().map(Value::to_string).collect();
    std::fs::write(&changed, text.join("\n---\n"))?;
    let mut check = Command::new(program::tool("python3")?);
    check.arg(program::repository().join("tests/python/manifests.py")).stdin(Stdio::from(File::open(&changed)?));
    let checked = program::output(check).await?;
    let found: Vec<_> = String::from_utf8(checked.stdout)?.lines().map(str::to_owned).collect();
    assert_eq!(checked.status.success(), found.is_empty(), "{}", String::from_utf8_lossy(&checked.stderr));
    Ok(found)
}

/// What payment's NetworkPolicy says.
fn policy(documents: &mut [Value]) -> &mut Value {
    let is_it =
        |document: &&mut Value| document["kind"] == "NetworkPolicy" && document["metadata"]["name"] == "payment";
    &mut documents.iter_mut().find(is_it).expect("a NetworkPolicy")["spec"]
}

#[tokio::test]
async fn pods_that_no_network_policy_is_for_are_refused() -> anyhow::Result<()> {
    let sound = sound()?;
    assert_eq!(found(&sound, |_| ()).await?, [""; 0]);
    let unfenced = "expected of Deployment payment: a NetworkPolicy says who may reach its pods";
    let gone = |documents: &mut Vec<Value>| {
        documents.retain(|document| document["kind"] != "NetworkPolicy" || document["metadata"]["name"] != "payment");
    };
    assert_eq!(found(&sound, gone).await?, [unfenced]);
    assert_eq!(found(&sound, |all| policy(all)["policyTypes"] = json!(["Egress"])).await?, [unfenced]);
    // It is for those of the labels alone that the expressions are true of, too.
    let narrowed = json!([{"key": "app.kubernetes.io/version", "operator": "In", "values": ["2"]}]);
    assert_eq!(found(&sound, |all| policy(all)["podSelector"]["matchExpressions"] = narrowed).await?, [unfenced]);
    let elsewhere = |all: &mut Vec<Value>| {
        for document in all {
            if document["kind"] == "NetworkPolicy" && document["metadata"]["name"] == "payment" {
                document["metadata"]["namespace"] = json!("elsewhere");
            }
        }
    };
    assert_eq!(found(&sound, elsewhere).await?, [unfenced]);
    Ok(())
}

#[tokio::test]
async fn a_network_policy_that_admits_everybody_is_refused() -> anyhow::Result<()> {
    let sound = sound()?;
    let anybody = "expected of NetworkPolicy payment: says of each rule from where, not anywhere";
    let any_port = "expected of NetworkPolicy payment: says of each rule which port";
    let (order, port) = (json!({"podSelector": {}}), json!({"port": "grpc"}));
    for (rule, expected) in [
        (json!({}), vec![anybody, any_port]),
        (json!({"ports": [port]}), vec![anybody]),
        (json!({"from": [], "ports": [port]}), vec![anybody]),
        (json!({"from": null, "ports": [port]}), vec![anybody]),
        (json!({"from": [{}], "ports": [port]}), vec![anybody]),
        (json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [port]}), vec![anybody]),
        (json!({"from": [order, {"ipBlock": {"cidr": "::/0"}}], "ports": [port]}), vec![anybody]),
        (json!({"from": [order]}), vec![any_port]),
        (json!({"from": [order], "ports": []}), vec![any_port]),
        (json!({"from": [order], "ports": [port, {"protocol": "TCP"}]}), vec![any_port]),
        (json!({"from": [order], "ports": [port]}), vec![]),
    ] {
        let rules = json!([{"from": [order], "ports": [port]}, rule]);
        assert_eq!(found(&sound, |all| policy(all)["ingress"] = rules).await?, expected, "{rule}");
    }
    Ok(())
}
