-- Who calls with a key, as whoever made it says.
ALTER TABLE keys ADD COLUMN agent TEXT;
ALTER TABLE keys ADD COLUMN user TEXT;
