//! Folders, and files larger than 32 bits can say.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use tread_tests::write::{Gguf, safetensors, safetensors_raw, tiny_llama, tiny_step3, weights};

use super::{EXPERTS, Q_PROJ, open_path, refused};

/// A folder with a valid model in two shards and an index.
fn sharded(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights(config);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let shards = [("model-1-of-2.safetensors", first), ("model-2-of-2.safetensors", second)];
    let mut map = serde_json::Map::new();
    for (name, tensors) in shards {
        fs::write(folder.path().join(name), safetensors(tensors)).unwrap();
        map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
    }
    write_index(folder.path(), &map.into());
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn write_index(folder: &Path, map: &Value) {
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn folders() {
    let config = tiny_step3();
    let good = sharded(&config);
    open_path(good.path()).unwrap();
    let index = good.path().join("model.safetensors.index.json");
    let map = serde_json::from_slice::<Value>(&fs::read(&index).unwrap()).unwrap()["weight_map"].take();
    fs::remove_file(&index).unwrap();
    open_path(good.path()).unwrap();

    let folder = sharded(&config);
    let (at, first) = (folder.path(), folder.path().join("model-1-of-2.safetensors"));
    let open_with = |name: &str, shard: Value| {
        let mut map = map.clone();
        map[name] = shard;
        write_index(at, &map);
        open_path(at)
    };
    for outside in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "a/../b.safetensors",
        "C:\\x.safetensors",
        "config.json",
    ] {
        refused("outside", open_with(EXPERTS, json!(outside)), &[outside, "index.json"]);
    }
    refused(
        "no such shard",
        open_with(EXPERTS, json!("model-9.safetensors")),
        &["model-9.safetensors", "missing"],
    );
    let misplaced = open_with(EXPERTS, json!("model-1-of-2.safetensors"));
    refused("in the other shard", misplaced, &[EXPERTS, "model-1-of-2.safetensors"]);
    refused("a tensor that is nowhere", open_with("ghost", json!("model-1-of-2.safetensors")), &["ghost"]);
    refused("a number for a shard", open_with(EXPERTS, json!(3)), &["index.json"]);
    write_index(at, &map);
    open_path(at).unwrap();
    fs::copy(&first, at.join("model-3.safetensors")).unwrap();
    fs::remove_file(at.join("model.safetensors.index.json")).unwrap();
    refused("a shard twice", open_path(at), &["model-1-of-2.safetensors", "model-3.safetensors", "again"]);
    fs::remove_file(at.join("model-3.safetensors")).unwrap();
    File::options().write(true).open(&first).unwrap().set_len(0).unwrap();
    refused("an empty shard", open_path(at), &["model-1-of-2.safetensors", "at least 8 bytes"]);
    fs::remove_file(&first).unwrap();
    refused("a shard less", open_path(at), &["missing from the checkpoint"]);
    fs::create_dir(&first).unwrap();
    refused("a folder as shard", open_path(at), &["model-1-of-2.safetensors"]);
    fs::remove_dir(&first).unwrap();
    fs::remove_file(at.join("model-2-of-2.safetensors")).unwrap();
    refused("no shards", open_path(at), &["no model*.safetensors"]);
    let config = at.join("config.json");
    File::options().write(true).open(&config).unwrap().set_len(1 << 40).unwrap();
    refused("a terabyte of config", open_path(at), &["config.json", "1099511627776 bytes"]);
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    refused("a folder as config", open_path(at), &["config.json"]);
    fs::remove_dir(&config).unwrap();
    refused("no config", open_path(at), &["config.json", ".gguf"]);
    refused("nothing", open_path(&at.join("nothing")), &["cannot read", "nothing"]);
    let lone = good.path().join("model-1-of-2.safetensors");
    refused("one file of safetensors", open_path(&lone), &["model-1-of-2.safetensors", "config.json"]);
    let empty = at.join("empty.gguf");
    File::create(&empty).unwrap();
    refused("an empty GGUF", open_path(&empty), &["empty.gguf", "truncated"]);
}

/// Where tensors lie beyond what 32 bits, signed or not, can say.
#[test]
fn offsets_beyond_four_gibibytes() {
    const FAR: u64 = (1 << 32) + (1 << 31);
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str, head: &[u8], at: u64, data: &[u8]| {
        let path = folder.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(head).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(data).unwrap();
        path
    };
    let config = tiny_llama();
    let tensors = weights(&config);
    let mut header = serde_json::Map::new();
    header.insert("filler".to_owned(), json!({"dtype": "U8", "shape": [FAR], "data_offsets": [0, FAR]}));
    let mut at = FAR;
    for t in &tensors {
        let end = at + t.bytes.len() as u64;
        header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let head = safetensors_raw(&Value::from(header).to_string(), &[]);
    let data: Vec<u8> = tensors.iter().flat_map(|t| t.bytes.clone()).collect();
    create("model.safetensors", &head, head.len() as u64 + FAR, &data);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = open_path(folder.path()).unwrap();
    for t in &tensors {
        let tensor = &model.checkpoint.tensors[&t.name];
        assert_eq!(*tensor.read_rows(0..tensor.rows()).unwrap(), *t.bytes, "{}", t.name);
    }

    let mut file = Gguf::tiny();
    let whole = file.bytes();
    let mut length = 0;
    for tensor in &mut file.tensors {
        tensor.offset = Some(FAR + length);
        length += tensor.bytes.len().next_multiple_of(32) as u64;
    }
    let (head, data) = whole.split_at(whole.len() - length as usize);
    let head = &file.bytes()[..head.len()];
    let path = create("model.gguf", head, head.len() as u64 + FAR, data);
    let model = open_path(&path).unwrap();
    let tensor = &model.checkpoint.tensors[Q_PROJ];
    assert_eq!(*tensor.read_rows(0..tensor.rows()).unwrap(), *file.tensors[2].bytes);
}
