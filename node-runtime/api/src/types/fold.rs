//! Field names whatever their case, as Go's decoder takes them: clients in other languages rely on it.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// Reads a value whose structs' field names may be written in any case. Keys of maps stay as they are.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Folded(value))
}

/// A value that spells field names as the struct that is read from it does.
#[derive(Debug, Clone)]
pub(crate) struct Folded(pub Value);

impl IntoDeserializer<'_, Error> for Folded {
    type Deserializer = Folded;

    fn into_deserializer(self) -> Folded {
        self
    }
}

impl<'de> Deserializer<'de> for Folded {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(values) => {
                let mut values = SeqDeserializer::new(values.into_iter().map(Folded));
                let read = visitor.visit_seq(&mut values)?;
                values.end().map(|()| read)
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Folded(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(given) => Folded(Value::Object(spelled(given, fields))).deserialize_any(visitor),
            other => Folded(other).deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The fields under the names that are looked for. One that is spelled exactly counts more than one that is not.
fn spelled(given: Map<String, Value>, fields: &[&str]) -> Map<String, Value> {
    let is_exact = |name: &String| fields.contains(&name.as_str());
    let (exact, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|(name, _)| is_exact(name));
    let others = others.into_iter().filter_map(|(name, value)| {
        let field = fields.iter().find(|field| field.eq_ignore_ascii_case(&name))?;
        Some(((*field).to_owned(), value))
    });
    others.chain(exact).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{CreateBody, HostConfig, NetworkCreateBody};

    #[test]
    fn fields_are_found_in_any_case_and_keys_are_left_alone() {
        let body: CreateBody = from_value(json!({
            "IMAGE": "busybox", "cmd": ["true"], "labels": {"Image": "a", "image": "b"},
            "hostconfig": {"memory": 6, "CPUSHARES": 7, "binds": ["a:b"], "restartpolicy": {"name": "always"}},
        }))
        .expect("body");
        assert_eq!((body.config.image.as_str(), body.config.cmd.words().len()), ("busybox", 1));
        assert_eq!(body.config.labels.expect("labels").len(), 2);
        let host: HostConfig = body.host_config.expect("host configuration");
        assert_eq!((host.resources.memory, host.resources.cpu_shares), (6, 7));
        assert_eq!((host.binds.expect("binds").len(), host.restart_policy.name.as_str()), (1, "always"));
    }

    #[test]
    fn the_exact_spelling_counts_and_mistakes_are_told() {
        let body: NetworkCreateBody =
            from_value(json!({"name": "a", "Name": "b", "NAME": "c"})).expect("body");
        assert_eq!(body.name, "b");
        let error =
            from_value::<CreateBody>(json!({"hostconfig": {"memory": "much"}})).expect_err("no number");
        assert!(error.to_string().contains("invalid type: string \"much\""), "{error}");
        let error = from_value::<NetworkCreateBody>(json!([1])).expect_err("no object");
        assert!(error.to_string().contains("invalid"), "{error}");
    }
}
