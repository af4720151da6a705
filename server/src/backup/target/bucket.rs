//! A bucket of anything that speaks S3.
//!
//! Who we are there, and where that is, comes from the environment as it does for every such program:
//! `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, or the role of
//! the machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use object_store::ClientConfigKey::{ReadTimeout, Timeout};
use object_store::aws::AmazonS3ConfigKey::Client;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use super::bounded::Bounded;
use super::{COPY_LEN, Place, check_listed, runtime};

/// Objects are objects.
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    runtime: Runtime,
}

impl Bucket {
    pub(super) fn open(bucket: &str, prefix: &str) -> Result<Self> {
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_http_connector(Bounded)
            .with_config(Client(Timeout), "1 hour")
            .with_config(Client(ReadTimeout), "5 minutes")
            .build()
            .with_context(|| format!("the bucket {bucket}"))?;
        Ok(Self {
            store: Arc::new(store),
            prefix: Key::from(prefix),
            runtime: runtime()?,
        })
    }

    fn key(&self, name: &str) -> Key {
        name.split('/')
            .fold(self.prefix.clone(), |key, part| key.join(part))
    }
}

impl Place for Bucket {
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let below = self.key(prefix);
        let mut listed = self.store.list(Some(&below));
        let mut found = BTreeMap::new();
        self.runtime.block_on(async {
            while let Some(object) = listed.try_next().await? {
                if let Some(name) = object.location.filename() {
                    found.insert(format!("{prefix}/{name}"), object.size);
                }
                check_listed(found.len())?;
            }
            Ok(found)
        })
    }

    fn put(&self, name: &str, from: &Path) -> Result<()> {
        let mut file = File::open(from)?;
        // Until it is shut down there is no object; what was sent of it is thrown away by the store in time.
        let mut writer = BufWriter::with_capacity(self.store.clone(), self.key(name), PART_LEN)
            .with_max_concurrency(PARTS_AT_ONCE);
        self.runtime.block_on(async {
            let mut buffer = vec![0; COPY_LEN];
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    return Ok(writer.shutdown().await?);
                }
                let chunk = buffer.get(..read).unwrap_or_default();
                if let Err(error) = writer.write_all(chunk).await {
                    drop(writer.abort().await);
                    return Err(error.into());
                }
            }
        })
    }

    fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()> {
        self.runtime.block_on(async {
            let mut chunks = self.store.get(&self.key(name)).await?.into_stream();
            while let Some(chunk) = chunks.try_next().await? {
                sink.write_all(&chunk)?;
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.store.delete(&self.key(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is longer is sent in parts of this length.
const PART_LEN: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 2;
