//! The paths, all of them.

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/health`: the program answers.
    Health,
    /// `/ready`: it takes sessions.
    Ready,
    /// `/mcp/NAME`: one server.
    Server(&'a str),
    /// `/mcp`: all servers, later.
    AllServers,
    /// Where clients of revision 2024-11-05 look.
    OldTransport,
    /// What will be there later.
    Later,
    /// Nothing.
    Unknown,
}

impl<'a> Route<'a> {
    /// Reads a path. Names have no characters that would be escaped.
    pub fn of(path: &'a str) -> Self {
        match path {
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/mcp" | "/mcp/" => Self::AllServers,
            "/metrics" | "/ui" | "/ui/" => Self::Later,
            "/sse" | "/message" | "/messages" => Self::OldTransport,
            _ => match path.strip_prefix("/mcp/") {
                Some(name) if name.ends_with("/sse") || name.ends_with("/message") => Self::OldTransport,
                Some(name) => Self::Server(name),
                None if path.starts_with("/sse/") => Self::OldTransport,
                None => Self::Unknown,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_stands_for_one_thing() {
        for (path, route) in [
            ("/health", Route::Health),
            ("/ready", Route::Ready),
            ("/mcp", Route::AllServers),
            ("/mcp/", Route::AllServers),
            ("/mcp/everything", Route::Server("everything")),
            ("/mcp/a/b", Route::Server("a/b")),
            ("/mcp/..", Route::Server("..")),
            ("/sse", Route::OldTransport),
            ("/sse/everything", Route::OldTransport),
            ("/mcp/everything/sse", Route::OldTransport),
            ("/metrics", Route::Later),
            ("/ui", Route::Later),
            ("/", Route::Unknown),
            ("/mcpx", Route::Unknown),
            ("/healthz", Route::Unknown),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }
}
