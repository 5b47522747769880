//! What rendered Kubernetes manifests say of pods: which program runs, with what environment, and how it is probed.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{Shop, program};

/// A Deployment's pods.
#[derive(Debug)]
pub struct Pods {
    /// The Deployment's name, and its Service's.
    pub name: String,
    /// The service that they run.
    pub service: &'static str,
    /// The port that they listen on.
    pub port: u64,
    /// What their variables are, as the kubelet would make them of a pod that is called as its Deployment. The address of the database
    /// is not among them: a Secret has it.
    pub environment: Vec<(String, String)>,
    /// The command that tells whether one is ready.
    pub probe: Vec<String>,
}

impl Pods {
    /// All that an overlay's folder makes, in the project's own.
    ///
    /// # Errors
    /// When it can't be rendered, or holds what nothing here stands for.
    pub fn of(overlay: &Path) -> anyhow::Result<Vec<Self>> {
        rendered(overlay)?.iter().filter(|document| document["kind"] == "Deployment").map(Self::new).collect()
    }

    fn new(deployment: &Value) -> anyhow::Result<Self> {
        let name = text(&deployment["metadata"]["name"])?;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        // Its image is whoever's that an overlay names.
        let label = text(&deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"])?;
        let service = Shop::NAMES.into_iter().find(|name| *name == label);
        let service = service.with_context(|| format!("{name}: {label} is no service in Shop::NAMES"))?;
        let port = container["ports"][0]["containerPort"].as_u64().context("a port")?;
        let probe = list(&container["readinessProbe"]["exec"]["command"]).map(text).collect::<Result<_, _>>()?;
        let mut pods = Self { name, service, port, environment: Vec::new(), probe };
        for variable in list(&container["env"]) {
            pods.add(variable)?;
        }
        Ok(pods)
    }

    fn add(&mut self, variable: &Value) -> anyhow::Result<()> {
        let source = &variable["valueFrom"];
        let value = if let Some(value) = variable["value"].as_str() {
            // What came before is put in.
            let known = self.environment.iter();
            known.fold(value.to_owned(), |value, (name, known)| value.replace(&format!("$({name})"), known))
        } else if source["fieldRef"]["fieldPath"] == "metadata.name" {
            self.name.clone()
        } else if source["secretKeyRef"]["name"] == "postgres" && source["secretKeyRef"]["key"] == self.service {
            return Ok(());
        } else {
            bail!("{}: {variable}", self.name);
        };
        self.environment.push((text(&variable["name"])?, value));
        Ok(())
    }
}

/// All that an overlay's folder makes.
///
/// # Errors
/// When it can't be rendered.
pub fn rendered(overlay: &Path) -> anyhow::Result<Vec<Value>> {
    let mut render = Command::new(program::tool("kubectl")?);
    let mut rendering = render.arg("kustomize").arg(overlay).stdout(Stdio::piped()).spawn().context("kubectl")?;
    let mut convert = Command::new(program::tool("python3")?);
    convert.args(["-c", "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"]);
    let output = convert.stdin(rendering.stdout.take().context("its output")?).output().context("python3")?;
    ensure!(rendering.wait()?.success() && output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is no text"))?.to_owned())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_run_the_service_of_their_label_whatever_their_image_is_called() {
        let container = json!({"image": "registry.example/acme/order:1.2", "ports": [{"containerPort": 50054}]});
        let labels = json!({"app.kubernetes.io/name": "order"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
        let deployment = json!({"metadata": {"name": "order-queries"}, "spec": {"template": template}});
        assert_eq!(Pods::new(&deployment).expect("a Deployment").service, "order");
    }
}
