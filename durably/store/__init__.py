"""What is stored: tables, the SQL as functions over a connection, the committer, migrations, dialects."""
