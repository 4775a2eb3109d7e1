//! Values that are written as one text, in files and messages as on a command line.

/// Has serde read and write types as `FromStr` and `Display` do: they say `#[serde(try_from = "String", into =
/// "String")]`.
macro_rules! as_text {
    ($($type:ty => $error:ty),+ $(,)?) => {$(
        impl TryFrom<String> for $type {
            type Error = $error;
            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )+};
}
