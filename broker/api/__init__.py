"""HTTP and WebSockets: what carries requests in and answers out."""
