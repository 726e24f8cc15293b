//! The configuration of networks on a node (`/etc/cni/net.d`): which of them is in use, and how the plugin is
//! chained into it, and taken out again. Pure, but for reading the folder.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The plugin's type, by which it is known.
pub(crate) const TYPE: &str = "istio-cni";

/// The names of the files with valid configurations, in order: the first one is the one in use.
pub(crate) fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".conf") || name.ends_with(".conflist"))
        .collect();
    names.sort();
    names.retain(|name| {
        let valid = std::fs::read_to_string(folder.join(name))
            .map_err(|error| error.to_string())
            .and_then(|text| read(&text))
            .and_then(|object| {
                let list = name.ends_with(".conflist");
                let fine =
                    if list { plugins(&object).is_some_and(|it| !it.is_empty()) } else { is_single(&object) };
                if fine { Ok(()) } else { Err("there are no plugins in it".to_owned()) }
            });
        if let Err(why) = &valid {
            tracing::warn!("{name} is passed over: {why}");
        }
        valid.is_ok()
    });
    Ok(names)
}

/// Adds the plugin at the end of a network's list, or replaces it there. A configuration of one plugin becomes a list.
pub(crate) fn insert(existing: &str, plugin: &Value) -> Result<String, String> {
    let mut network = read(existing)?;
    let mut plugin = plugin.clone();
    // The list has it.
    if let Some(plugin) = plugin.as_object_mut() {
        plugin.shift_remove("cniVersion");
    }
    if is_single(&network) {
        network.shift_remove("cniVersion");
        let list = json!({
            "name": "k8s-pod-network",
            "cniVersion": "0.3.1",
            "plugins": [Value::Object(network), plugin],
        });
        return Ok(write(&list));
    }
    let Some(Value::Array(list)) = network.get_mut("plugins") else {
        return Err("it has no list of plugins".to_owned());
    };
    list.retain(|entry| !is_ours(entry));
    list.push(plugin);
    Ok(write(&Value::Object(network)))
}

/// Takes the plugin out again; `None`: it is not in it.
pub(crate) fn remove(existing: &str) -> Result<Option<String>, String> {
    let mut network = read(existing)?;
    let Some(Value::Array(list)) = network.get_mut("plugins") else { return Ok(None) };
    let before = list.len();
    list.retain(|entry| !is_ours(entry));
    if list.len() == before {
        return Ok(None);
    }
    Ok(Some(write(&Value::Object(network))))
}

fn read(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn plugins(network: &Map<String, Value>) -> Option<&Vec<Value>> {
    network.get("plugins")?.as_array()
}

fn is_single(network: &Map<String, Value>) -> bool {
    network.get("type").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty())
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

/// As it is written.
pub(crate) fn write(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::{insert, names, remove};

    #[test]
    fn into_a_list_and_out_of_it() {
        let list = r#"{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        let plugin = json!({"cniVersion": "0.3.1", "type": "istio-cni", "plugin_log_level": "info"});
        let with = insert(list, &plugin).unwrap();
        expect![[r#"
            {
              "cniVersion": "1.0.0",
              "name": "cbr0",
              "plugins": [
                {
                  "type": "bridge"
                },
                {
                  "type": "portmap"
                },
                {
                  "type": "istio-cni",
                  "plugin_log_level": "info"
                }
              ]
            }
        "#]]
        .assert_eq(&with);
        assert_eq!(insert(&with, &plugin).unwrap(), with, "once is enough");
        let without = remove(&with).unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&without).unwrap(),
            serde_json::from_str::<serde_json::Value>(list).unwrap()
        );
        assert_eq!(remove(&without).unwrap(), None);
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        let single = r#"{"cniVersion": "0.4.0", "name": "dbnet", "type": "bridge", "bridge": "cni0"}"#;
        let with = insert(single, &json!({"type": "istio-cni"})).unwrap();
        expect![[r#"
            {
              "name": "k8s-pod-network",
              "cniVersion": "0.3.1",
              "plugins": [
                {
                  "name": "dbnet",
                  "type": "bridge",
                  "bridge": "cni0"
                },
                {
                  "type": "istio-cni"
                }
              ]
            }
        "#]]
        .assert_eq(&with);
        assert!(insert("{}", &json!({})).is_err());
        assert!(insert("[]", &json!({})).is_err());
    }

    #[test]
    fn the_first_valid_one_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put("00-broken.conflist", "{");
        put("05-empty.conflist", r#"{"name": "x", "plugins": []}"#);
        put("20-b.conf", r#"{"type": "bridge"}"#);
        put("10-a.conflist", r#"{"name": "a", "plugins": [{"type": "x"}]}"#);
        put("01-other.json", r#"{"type": "bridge"}"#);
        assert_eq!(names(folder.path()).unwrap(), ["10-a.conflist", "20-b.conf"]);
    }
}
