"""An OTP supervisor for trio, useful without the rest of Famulus."""
