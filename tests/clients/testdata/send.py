"""Sends the file that is named, as it is. Arguments: host, port, "tls" or "starttls", file of
the CA, user, password, from, to, file of the message."""
import smtplib
import ssl
import sys

host, port, how, ca, user, password, sender, to, path = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with open(path, "rb") as f:
    message = f.read()
if how == "tls":
    server = smtplib.SMTP_SSL(host, int(port), context=context)
else:
    server = smtplib.SMTP(host, int(port))
    server.starttls(context=context)
with server:
    server.login(user, password)
    refused = server.sendmail(sender, [to], message)
    if refused:
        sys.exit(f"refused: {refused}")
