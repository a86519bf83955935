# frozen_string_literal: true

# How Rails authenticates its callers. Written like GitLab's own code, step by step, because the order of the steps is
# the contract.
module Authentication
  # gitlab-shell and Gitaly: a secret as parameter or header, or a token signed with it.
  module Shell
    TOKEN_HEADER = 'Gitlab-Shell-Api-Request'
    SECRET_HEADER = 'Gitlab-Shared-Secret'
    ISSUER = 'gitlab-shell'
    LEEWAY = 60

    class << self
      def secret
        @secret ||= File.read(ENV.fetch('RAILS_SHELL_SECRET_FILE')).chomp
      end

      def ok?(params, headers)
        case ENV.fetch('RAILS_ERA', 'both')
        when 'secret' then secret_ok?(params, headers)
        when 'jwt', 'today' then token_ok?(headers)
        when 'both' then headers.key?(TOKEN_HEADER) ? token_ok?(headers) : secret_ok?(params, headers)
        end
      end

      private

      # The parameter is compared as it is; only the header is Base64.
      def secret_ok?(params, headers)
        input = params['secret_token']
        input ||= Base64.decode64(headers[SECRET_HEADER]) if headers.key?(SECRET_HEADER)
        input&.chomp!
        same?(secret, input)
      end

      def same?(ours, theirs)
        return false if ours.blank? || theirs.blank? || ours.bytesize != theirs.bytesize

        ActiveSupport::SecurityUtils.fixed_length_secure_compare(ours, theirs)
      end

      def token_ok?(headers)
        payload, = JWT.decode(headers[TOKEN_HEADER], secret, true, leeway: LEEWAY, algorithm: 'HS256')
        payload['iss'] == ISSUER
      rescue JWT::DecodeError
        false
      end
    end
  end

  # The Kubernetes agent server: a short-lived token, checked without any leeway.
  module Kas
    TOKEN_HEADER = 'Gitlab-Kas-Api-Request'
    ISSUER = 'gitlab-kas'
    AUDIENCE = 'gitlab'
    SECRET_LENGTH = 32

    class << self
      def ok?(headers)
        rules = { iss: ISSUER, verify_iss: true, algorithm: 'HS256' }
        rules.merge!(aud: AUDIENCE, verify_aud: true) if ENV['RAILS_ERA'] == 'today'
        JWT.decode(headers[TOKEN_HEADER], secret, true, rules)
        true
      rescue JWT::DecodeError
        false
      end

      private

      def secret
        bytes = Base64.strict_decode64(File.read(ENV.fetch('RAILS_KAS_SECRET_FILE')).chomp)
        raise "the kas secret is not #{SECRET_LENGTH} bytes" if bytes.bytesize != SECRET_LENGTH

        bytes
      end
    end
  end
end
